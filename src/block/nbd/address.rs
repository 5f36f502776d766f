//! Where an NBD server is: URIs, old-style names and options.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_util::{Error, Result, bail};

use super::stream::Stream;

/// The port of servers that name none.
pub const DEFAULT_PORT: &str = "10809";

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or number, and port name or number.
    Inet {
        /// Host.
        host: String,
        /// Port.
        port: String,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// A server and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The server, if the name had one.
    pub address: Option<Address>,
    /// The export, if the name had one.
    pub export: Option<String>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inet { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Parses a filename: `nbd://host[:port][/export]`, `nbd+tcp://…`, `nbd+unix:///[export]?socket=path`,
/// `nbd:host:port[:exportname=name]`, `nbd:unix:path[:exportname=name]`.
pub fn parse_filename(name: &str) -> Result<Location> {
    if name.contains("://") {
        return parse_uri(name).ok_or_else(|| Error::new("No valid URL specified"));
    }
    let Some(rest) = name.strip_prefix("nbd:") else {
        bail!("File name string for new protocol must start with 'nbd:'");
    };
    let (place, export) = match rest.split_once(":exportname=") {
        Some((_, "")) | None => (rest.strip_suffix(":exportname=").unwrap_or(rest), None),
        Some((place, export)) => (place, Some(export.to_owned())),
    };
    let address = if place.is_empty() {
        None
    } else if let Some(path) = place.strip_prefix("unix:") {
        Some(Address::Unix(path.into()))
    } else {
        Some(parse_inet(place)?)
    };
    Ok(Location { address, export })
}

/// `host:port`, with an IPv6 host in brackets.
fn parse_inet(text: &str) -> Result<Address> {
    let split = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.split_once(':'),
    };
    match split {
        Some((host, port)) if !port.is_empty() && !port.contains([':', ',']) => {
            Ok(Address::Inet { host: host.to_owned(), port: port.to_owned() })
        }
        _ => bail!("error parsing address '{text}'"),
    }
}

fn parse_uri(uri: &str) -> Option<Location> {
    let (scheme, rest) = uri.split_once("://")?;
    let rest = rest.split_once('#').map_or(rest, |(r, _)| r);
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, q)| (r, Some(q)));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let export = percent_decode(path.trim_start_matches('/'))?;
    let export = (!export.is_empty()).then_some(export);
    let address = match scheme {
        "nbd+unix" => {
            let (key, socket) = query?.split_once('=')?;
            if key != "socket" || socket.contains('&') || !authority.is_empty() {
                return None;
            }
            Address::Unix(percent_decode(socket)?.into())
        }
        "nbd" | "nbd+tcp" => {
            let authority = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
            let (host, port) = match authority.strip_prefix('[') {
                Some(rest) => {
                    let (host, tail) = rest.split_once(']')?;
                    (host, if tail.is_empty() { None } else { Some(tail.strip_prefix(':')?) })
                }
                None => authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p))),
            };
            if host.is_empty() || query.is_some() {
                return None;
            }
            let port = match port.filter(|p| !p.is_empty()) {
                Some(port) => port.parse::<u16>().ok()?.to_string(),
                None => DEFAULT_PORT.to_owned(),
            };
            Address::Inet { host: percent_decode(host)?, port }
        }
        _ => return None,
    };
    Some(Location { address: Some(address), export })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let pair = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

impl Address {
    /// The URI that opens `export` here.
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Inet { host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                if export.is_empty() { format!("nbd://{host}:{port}") } else { format!("nbd://{host}:{port}/{export}") }
            }
            Self::Unix(path) if export.is_empty() => format!("nbd+unix://?socket={}", path.display()),
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }

    /// Connects within `limit`. Names are looked up on another thread.
    pub async fn connect(&self, limit: Duration) -> Result<Stream> {
        match tokio::time::timeout(limit, self.connect_unbounded()).await {
            Ok(result) => result,
            Err(_) => Err(self.failed(&std::io::Error::from_raw_os_error(libc::ETIMEDOUT))),
        }
    }

    async fn connect_unbounded(&self) -> Result<Stream> {
        match self {
            Self::Inet { host, port } => {
                let mut last = std::io::Error::from_raw_os_error(libc::ENOENT);
                for address in resolve(host, port).await? {
                    match Stream::connect_tcp(address).await {
                        Ok(stream) => return Ok(stream),
                        Err(e) => last = e,
                    }
                }
                Err(self.failed(&last))
            }
            Self::Unix(path) => connect_unix(path).await.map_err(|e| self.failed(&e)),
        }
    }

    fn failed(&self, e: &std::io::Error) -> Error {
        Error::with_errno(format_args!("Failed to connect to '{self}'"), e)
    }
}

async fn connect_unix(path: &Path) -> std::io::Result<Stream> {
    Stream::connect_unix(path).await
}

/// All addresses of a host and port.
pub async fn resolve(host: &str, port: &str) -> Result<Vec<SocketAddr>> {
    let failed = |why: &str| Error::new(format!("address resolution failed for {host}:{port}: {why}"));
    let Ok(number) = port.parse::<u16>() else {
        return Err(failed("Servname not supported for ai_socktype"));
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, number)]);
    }
    if host.is_empty() {
        return Err(failed("Name or service not known"));
    }
    match tokio::net::lookup_host((host, number)).await {
        Ok(found) => Ok(found.collect()),
        Err(e) => {
            let text = e.to_string();
            Err(failed(text.rsplit(": ").next().unwrap_or(&text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(host: &str, port: &str) -> Option<Address> {
        Some(Address::Inet { host: host.into(), port: port.into() })
    }

    #[test]
    fn names_of_every_form_are_understood() {
        let unix = Some(Address::Unix("/tmp/s".into()));
        for (name, address, export) in [
            ("nbd://127.0.0.2:9999/parent0", inet("127.0.0.2", "9999"), Some("parent0")),
            ("nbd://host", inet("host", "10809"), None),
            ("nbd+tcp://[::1]:7/a%20b", inet("::1", "7"), Some("a b")),
            ("nbd+unix:///e?socket=/tmp/s", unix.clone(), Some("e")),
            ("nbd+unix://?socket=/tmp/s", unix.clone(), None),
            ("nbd:unix:/tmp/s:exportname=e", unix, Some("e")),
            ("nbd:127.0.0.1:7290:exportname=x", inet("127.0.0.1", "7290"), Some("x")),
            ("nbd:", None, None),
        ] {
            let got = parse_filename(name).unwrap();
            assert_eq!((got.address, got.export.as_deref()), (address, export), "{name}");
        }
    }

    #[test]
    fn malformed_names_get_qemus_errors() {
        for bad in
            ["nbd://", "nbd+unix:///exp", "nbd://127.0.0.1:99999/x", "nbd://127.0.0.1/x?socket=/y", "nbd://h/%zz"]
        {
            assert_eq!(parse_filename(bad).unwrap_err().message(), "No valid URL specified", "{bad}");
        }
        assert_eq!(parse_filename("nbd:foo").unwrap_err().message(), "error parsing address 'foo'");
    }

    #[test]
    fn a_uri_opens_what_it_was_made_of() {
        for uri in [
            "nbd://127.0.0.2:9999/parent0",
            "nbd://[::1]:7",
            "nbd+unix:///e?socket=/tmp/s",
            "nbd+unix://?socket=/tmp/s",
        ] {
            let l = parse_filename(uri).unwrap();
            assert_eq!(l.address.unwrap().uri(l.export.as_deref().unwrap_or("")), uri);
        }
    }
}
