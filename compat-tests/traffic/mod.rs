//! Clients of the guest that check every byte: what they say went well, went well.
mod bulk;
mod echo;
mod http;
mod kv;
mod stream;

pub use bulk::{download, upload};
pub use echo::{Echo, EchoReport, Pace};
pub use http::{Http, Response};
pub use kv::KeyValues;
pub use stream::fill;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The guest's address as [`GuestImage::default`](crate::guest_image::GuestImage) sets it.
pub const GUEST: [u8; 4] = [192, 168, 77, 2];
/// Port of the echo service.
pub const ECHO_PORT: u16 = 7;
/// Port of the HTTP service.
pub const HTTP_PORT: u16 = 80;

/// The longest silence that a client puts up with. Longer than any pause of a failover.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Opens a connection to a port of the guest.
///
/// # Errors
/// As the system reports them.
pub fn connect(port: u16, limit: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((GUEST, port)), limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Waits until the guest has booted: until its HTTP service answers. Returns how long that took.
///
/// # Errors
/// The last error, if it does not within `limit`.
pub fn wait_for_guest(limit: Duration) -> io::Result<Duration> {
    let start = Instant::now();
    loop {
        let answer = connect(HTTP_PORT, Duration::from_secs(1)).and_then(|stream| Http::on(stream).get("/stats"));
        match answer {
            Ok(_) => return Ok(start.elapsed()),
            Err(error) if start.elapsed() > limit => return Err(error),
            // The guest's network comes up by itself; nothing announces it to a client.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
