//! The command line's ways to describe a character device: `-chardev` options and the short forms of `-serial`,
//! `-monitor` and `-qmp` (`stdio`, `tcp:HOST:PORT,server=on`, `mon:...`).

use lockstep_qapi::opts::{OptDesc, OptType, Opts};
use lockstep_qapi::schema::{
    ChardevBackend, ChardevCommon, ChardevCommonWrapper, ChardevFile, ChardevFileWrapper, ChardevHostdev,
    ChardevHostdevWrapper, ChardevMux, ChardevMuxWrapper, ChardevPty, ChardevPtyWrapper, ChardevRingbuf,
    ChardevRingbufWrapper, ChardevSocket, ChardevSocketWrapper, ChardevStdio, ChardevStdioWrapper, ChardevUdp,
    ChardevUdpWrapper, FdSocketAddress, FdSocketAddressWrapper, InetSocketAddress, InetSocketAddressWrapper,
    SocketAddressLegacy, UnixSocketAddress, UnixSocketAddressWrapper,
};
use lockstep_util::{Result, bail, err};

const fn opt(name: &'static str, ty: OptType) -> OptDesc {
    OptDesc { name, ty }
}

/// What `-chardev` takes.
pub const KNOWN: &[OptDesc] = &[
    opt("backend", OptType::String),
    opt("path", OptType::String),
    opt("input-path", OptType::String),
    opt("host", OptType::String),
    opt("port", OptType::String),
    opt("fd", OptType::String),
    opt("localaddr", OptType::String),
    opt("localport", OptType::String),
    opt("to", OptType::Number),
    opt("ipv4", OptType::Bool),
    opt("ipv6", OptType::Bool),
    opt("keep-alive", OptType::Bool),
    opt("wait", OptType::Bool),
    opt("server", OptType::Bool),
    opt("delay", OptType::Bool),
    opt("nodelay", OptType::Bool),
    opt("reconnect", OptType::Number),
    opt("reconnect-ms", OptType::Number),
    opt("telnet", OptType::Bool),
    opt("tn3270", OptType::Bool),
    opt("tls-creds", OptType::String),
    opt("tls-authz", OptType::String),
    opt("websocket", OptType::Bool),
    opt("width", OptType::Number),
    opt("height", OptType::Number),
    opt("cols", OptType::Number),
    opt("rows", OptType::Number),
    opt("mux", OptType::Bool),
    opt("signal", OptType::Bool),
    opt("name", OptType::String),
    opt("debug", OptType::Number),
    opt("size", OptType::Size),
    opt("chardev", OptType::String),
    opt("append", OptType::Bool),
    opt("logfile", OptType::String),
    opt("logappend", OptType::Bool),
    opt("abstract", OptType::Bool),
    opt("tight", OptType::Bool),
];

/// A device as the command line asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// Its id.
    pub id: String,
    /// What is behind it.
    pub backend: ChardevBackend,
    /// Several users share it (`mux=on`).
    pub mux: bool,
}

/// Reads the options of one `-chardev` (the implied first key is `backend`).
///
/// # Errors
/// With QEMU's texts.
pub fn describe(opts: &Opts) -> Result<Described> {
    let Some(kind) = opts.get("backend") else {
        bail!("chardev: \"{}\" missing backend", opts.id.as_deref().unwrap_or_default());
    };
    let Some(id) = opts.id.clone() else { bail!("chardev: no id specified") };
    opts.check(KNOWN)?;
    let logfile = opts.get("logfile").map(str::to_owned);
    let logappend = opts.get_bool("logappend")?;
    let string = |name: &str| opts.get(name).map(str::to_owned);
    let common = || ChardevCommon { logfile: logfile.clone(), logappend };
    let backend = match kind {
        "socket" => {
            let data = socket(opts)?;
            ChardevBackend::Socket(ChardevSocketWrapper { data: ChardevSocket { logfile, logappend, ..data } })
        }
        "file" => {
            let Some(out) = string("path") else { bail!("chardev: file: no filename given") };
            let append = opts.get_bool("append")?;
            let data = ChardevFile { logfile, logappend, in_: string("input-path"), out, append };
            ChardevBackend::File(ChardevFileWrapper { data })
        }
        "pipe" => {
            let Some(device) = string("path") else { bail!("chardev: pipe: no device path given") };
            ChardevBackend::Pipe(ChardevHostdevWrapper { data: ChardevHostdev { logfile, logappend, device } })
        }
        "udp" => ChardevBackend::Udp(ChardevUdpWrapper { data: udp(opts)? }),
        "pty" => {
            let data = ChardevPty { logfile, logappend, path: string("path") };
            ChardevBackend::Pty(ChardevPtyWrapper { data })
        }
        "null" => ChardevBackend::Null(ChardevCommonWrapper { data: common() }),
        "mux" => {
            let Some(chardev) = string("chardev") else { bail!("chardev: mux: no chardev given") };
            ChardevBackend::Mux(ChardevMuxWrapper { data: ChardevMux { logfile, logappend, chardev } })
        }
        "stdio" => {
            let data = ChardevStdio { logfile, logappend, signal: opts.get_bool("signal")? };
            ChardevBackend::Stdio(ChardevStdioWrapper { data })
        }
        "ringbuf" | "memory" => {
            let size = opts.get_size("size")?.map(|n| i64::try_from(n).unwrap_or(0)).filter(|&n| n != 0);
            let data = ChardevRingbuf { logfile, logappend, size };
            ChardevBackend::Ringbuf(ChardevRingbufWrapper { data })
        }
        _ => bail!("'{kind}' is not a valid char driver name"),
    };
    Ok(Described { id, backend, mux: opts.get_bool("mux")?.unwrap_or(false) })
}

fn inet(opts: &Opts, host: String, port: &str) -> Result<InetSocketAddress> {
    Ok(InetSocketAddress {
        host,
        port: port.to_owned(),
        numeric: None,
        to: opts.get_number("to")?.map(|n| u16::try_from(n).unwrap_or(u16::MAX)),
        ipv4: opts.get_bool("ipv4")?,
        ipv6: opts.get_bool("ipv6")?,
        keep_alive: opts.get_bool("keep-alive")?,
        mptcp: None,
    })
}

fn socket(opts: &Opts) -> Result<ChardevSocket> {
    let (path, host, fd) = (opts.get("path"), opts.get("host"), opts.get("fd"));
    let given = [path, host, fd].iter().flatten().count();
    if given > 1 {
        bail!("None or one of 'path', 'fd' or 'host' option required.");
    }
    let addr = match (path, host) {
        (Some(path), _) => SocketAddressLegacy::Unix(UnixSocketAddressWrapper {
            data: UnixSocketAddress {
                path: path.to_owned(),
                abstract_: opts.get_bool("abstract")?,
                tight: opts.get_bool("tight")?,
            },
        }),
        (_, Some(host)) => {
            let port = opts.get("port").ok_or_else(|| err!("chardev: socket: no port given"))?;
            SocketAddressLegacy::Inet(InetSocketAddressWrapper { data: inet(opts, host.to_owned(), port)? })
        }
        _ => SocketAddressLegacy::Fd(FdSocketAddressWrapper {
            data: FdSocketAddress { str: fd.unwrap_or_default().to_owned() },
        }),
    };
    let server = opts.get_bool("server")?.unwrap_or(false);
    let wait = opts.get_bool("wait")?;
    let number = |name: &str| -> Result<Option<i64>> {
        Ok(opts.get_number(name)?.map(|n| i64::try_from(n).unwrap_or(i64::MAX)))
    };
    Ok(ChardevSocket {
        logfile: None,
        logappend: None,
        addr,
        tls_creds: opts.get("tls-creds").map(str::to_owned),
        tls_authz: opts.get("tls-authz").map(str::to_owned),
        server: Some(server),
        // Unlike the monitor's command, the command line waits unless told otherwise.
        wait: if server { Some(wait.unwrap_or(true)) } else { wait },
        nodelay: opts.get_bool("nodelay")?.or(opts.get_bool("delay")?.map(|delay| !delay)),
        telnet: opts.get_bool("telnet")?,
        tn3270: opts.get_bool("tn3270")?,
        websocket: opts.get_bool("websocket")?,
        reconnect: number("reconnect")?,
        reconnect_ms: number("reconnect-ms")?,
    })
}

fn udp(opts: &Opts) -> Result<ChardevUdp> {
    let filled = |name: &str| opts.get(name).filter(|v| !v.is_empty());
    let Some(port) = filled("port") else { bail!("chardev: udp: remote port not specified") };
    let wrap = |data| SocketAddressLegacy::Inet(InetSocketAddressWrapper { data });
    let remote = inet(opts, filled("host").unwrap_or("localhost").to_owned(), port)?;
    let local = match (filled("localaddr"), filled("localport")) {
        (None, None) => None,
        (host, port) => Some(wrap(inet(opts, host.unwrap_or_default().to_owned(), port.unwrap_or("0"))?)),
    };
    Ok(ChardevUdp { logfile: None, logappend: None, remote: wrap(remote), local })
}

/// Reads a short form (`-serial TEXT`, `-monitor TEXT`, `-qmp TEXT`) for a device that gets the id `label`. With
/// `mon:` in front, and for a monitor on standard input, several users share it; the caller adds the monitor.
///
/// # Errors
/// If the text is none of the forms, or lacks something.
pub fn parse_short(label: &str, text: &str) -> Result<Opts> {
    let (mux, text) = match text.strip_prefix("mon:") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut items: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| items.push((name.to_owned(), value.to_owned()));
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let mut more = "";
    match (kind, text.contains(':')) {
        ("null" | "pty" | "stdio", false) => set("backend", kind),
        ("file", true) => {
            set("backend", "file");
            set("path", rest);
        }
        ("pipe", true) => {
            set("backend", "pipe");
            set("path", rest);
        }
        ("tcp" | "telnet" | "websocket" | "tn3270", true) => {
            let (address, options) = rest.split_once(',').unwrap_or((rest, ""));
            let Some((host, port)) = address.rsplit_once(':') else {
                bail!("'{text}' is not a valid char driver");
            };
            set("backend", "socket");
            set("host", host);
            set("port", port);
            if kind != "tcp" {
                set(kind, "on");
            }
            more = options;
        }
        ("unix", true) => {
            let (path, options) = rest.split_once(',').unwrap_or((rest, ""));
            set("backend", "socket");
            set("path", path);
            more = options;
        }
        ("udp", true) => {
            let (remote, local) = rest.split_once('@').unwrap_or((rest, ""));
            let Some((host, port)) = remote.rsplit_once(':') else { bail!("'{text}' is not a valid char driver") };
            set("backend", "udp");
            set("host", host);
            set("port", port);
            if let Some((host, port)) = local.rsplit_once(':') {
                set("localaddr", host);
                set("localport", port);
            }
        }
        _ if text.starts_with("/dev/pts/") || text.starts_with("/dev/tty") => {
            set("backend", "pipe");
            set("path", text);
        }
        _ => bail!("'{text}' is not a valid char driver"),
    }
    if mux || (kind == "stdio" && label.starts_with("compat_monitor_stdio")) {
        set("mux", "on");
    }
    if kind == "stdio" {
        set("signal", if mux { "off" } else { "on" });
    }
    let mut opts = lockstep_qapi::opts::parse(more, None)?;
    items.append(&mut opts.items);
    Ok(Opts { id: Some(label.to_owned()), items, switches: opts.switches, help: false })
}
