//! Where a stream goes: QEMU's URIs and the `channels` argument.

use lockstep_util::{Result, bail, err};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetAddress {
    /// Name or number of the host; empty for all interfaces.
    pub host: String,
    /// The port's number.
    pub port: String,
    /// Ports up to this one are tried when listening.
    pub to: Option<u16>,
    /// Whether IPv4 is to be used; unsaid, whatever there is.
    pub ipv4: Option<bool>,
    /// Whether IPv6 is to be used.
    pub ipv6: Option<bool>,
    /// Whether the connection is probed when idle.
    pub keep_alive: bool,
}

/// One end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(InetAddress),
    /// A socket in the file system.
    Unix(PathBuf),
    /// A descriptor known to the monitor, or a number.
    Fd(String),
    /// A command's standard input or output.
    Exec(Vec<String>),
    /// A file, from an offset in bytes on.
    File {
        /// Its path.
        path: PathBuf,
        /// Where the stream begins.
        offset: u64,
    },
}

impl Address {
    /// Parses the URI of `migrate`, `migrate-incoming` and `-incoming`.
    ///
    /// # Errors
    /// QEMU's texts for what is not an address.
    pub fn parse(uri: &str) -> Result<Self> {
        let unknown = || err!("unknown migration protocol: {uri}");
        let (scheme, rest) = uri.split_once(':').ok_or_else(unknown)?;
        match scheme {
            "tcp" => Ok(Self::Tcp(InetAddress::parse(rest)?)),
            "unix" if rest.is_empty() => bail!("invalid Unix socket address"),
            "unix" => Ok(Self::Unix(rest.into())),
            "fd" => Ok(Self::Fd(rest.to_owned())),
            "exec" => Ok(Self::Exec(["/bin/sh", "-c", rest].map(str::to_owned).to_vec())),
            "file" => Self::parse_file(rest),
            "vsock" | "rdma" => bail!("The {scheme} transport is not compiled into this binary"),
            _ => Err(unknown()),
        }
    }

    /// From the elements of the `channels` argument.
    ///
    /// # Errors
    /// QEMU's texts for lists that are not one main channel.
    pub fn from_channels(channels: &[Value]) -> Result<Self> {
        let [channel] = channels else { bail!("Channel list must have only one entry, for type 'main'") };
        if channel["channel-type"] != "main" {
            bail!("No 'main' channel found");
        }
        let addr = &channel["addr"];
        let text = |key: &str| addr[key].as_str().unwrap_or_default().to_owned();
        match (addr["transport"].as_str(), addr["type"].as_str()) {
            (Some("socket"), Some("inet")) => Ok(Self::Tcp(InetAddress {
                host: text("host"),
                port: text("port"),
                to: addr["to"].as_u64().and_then(|to| to.try_into().ok()),
                ipv4: addr["ipv4"].as_bool(),
                ipv6: addr["ipv6"].as_bool(),
                keep_alive: addr["keep-alive"].as_bool().unwrap_or(false),
            })),
            (Some("socket"), Some("unix")) => Ok(Self::Unix(text("path").into())),
            (Some("socket"), Some("fd")) => Ok(Self::Fd(text("str"))),
            (Some("exec"), _) => {
                let words = addr["args"].as_array().into_iter().flatten();
                Ok(Self::Exec(words.filter_map(|w| w.as_str().map(str::to_owned)).collect()))
            }
            (Some("file"), _) => {
                Ok(Self::File { path: text("filename").into(), offset: addr["offset"].as_u64().unwrap_or(0) })
            }
            _ => bail!("This transport is not compiled into this binary"),
        }
    }

    fn parse_file(spec: &str) -> Result<Self> {
        let (path, offset) = match spec.split_once(",offset=") {
            None => (spec, 0),
            Some((path, text)) => {
                let offset = lockstep_util::size::parse_size(text, 'B');
                (path, offset.ok_or_else(|| err!("file URI has bad offset {text}: Invalid argument"))?)
            }
        };
        if path.is_empty() {
            bail!("file URI has no file name");
        }
        Ok(Self::File { path: path.into(), offset })
    }
}

impl InetAddress {
    /// Parses `host:port[,option...]`.
    ///
    /// # Errors
    /// `error parsing address '...'` and its relatives.
    pub fn parse(text: &str) -> Result<Self> {
        let (address, options) = text.split_once(',').unwrap_or((text, ""));
        let (host, port) = if let Some(v6) = address.strip_prefix('[') {
            v6.split_once("]:").ok_or_else(|| err!("error parsing IPv6 address '{text}'"))?
        } else {
            address.split_once(':').ok_or_else(|| err!("error parsing address '{text}'"))?
        };
        if port.is_empty() && host.is_empty() {
            bail!("error parsing port in address '{text}'");
        }
        if port.is_empty() || port.contains(':') || port.len() > 32 || host.len() > 255 {
            bail!("error parsing address '{text}'");
        }
        let mut out =
            Self { host: host.to_owned(), port: port.to_owned(), to: None, ipv4: None, ipv6: None, keep_alive: false };
        for option in options.split(',').filter(|o| !o.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, "on"));
            let flag = || match value {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(err!("error parsing '{key}' flag '={value}'")),
            };
            match key {
                "to" => out.to = Some(value.parse().map_err(|_| err!("error parsing to= argument"))?),
                "ipv4" => out.ipv4 = Some(flag()?),
                "ipv6" => out.ipv6 = Some(flag()?),
                "keep-alive" => out.keep_alive = flag()?,
                _ => bail!("Invalid option '{option}' in address '{text}'"),
            }
        }
        Ok(out)
    }

    /// The form that `query-migrate` shows.
    pub fn to_json(&self, port: u16) -> Value {
        let mut shown = json!({"type": "inet", "host": self.host, "port": port.to_string()});
        let v4 = self.host.parse::<std::net::Ipv4Addr>().is_ok();
        shown[if v4 || self.host.is_empty() { "ipv4" } else { "ipv6" }] = true.into();
        shown
    }

    pub(super) fn port_number(&self) -> Result<u16> {
        self.port.parse().map_err(|_| {
            err!("address resolution failed for {}:{}: Servname not supported for ai_socktype", self.host, self.port)
        })
    }
}
