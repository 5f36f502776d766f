//! Large transfers, checked to the byte.
use super::stream::{check, fill};
use super::{HTTP_PORT, Http, PATIENCE, connect};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

const PART: usize = 64 << 10;

/// Downloads `bytes` of the stream of `seed`. Returns the time from the request to the last byte.
///
/// # Errors
/// If the connection fails or a byte is wrong.
pub fn download(bytes: u64, seed: u64) -> io::Result<Duration> {
    let start = Instant::now();
    let mut http = Http::open()?;
    let (status, length) = http.start("GET", &format!("/bulk?bytes={bytes}&seed={seed}"), &[])?;
    if (status, length) != (200, bytes) {
        return Err(io::Error::other(format!("download: status {status}, length {length}")));
    }
    let mut part = vec![0; PART];
    let mut at = 0;
    while at < bytes {
        let wanted = (bytes - at).min(PART as u64) as usize;
        http.body().read_exact(&mut part[..wanted])?;
        check(seed, at, &part[..wanted]).map_err(|at| io::Error::other(format!("download: wrong byte at {at}")))?;
        at += wanted as u64;
    }
    Ok(start.elapsed())
}

/// Uploads `bytes` of the stream of `seed` and compares the guest's count and checksum. Returns the time from the first byte to the
/// answer.
///
/// # Errors
/// If the connection fails or the guest has received something else.
pub fn upload(bytes: u64, seed: u64) -> io::Result<Duration> {
    let mut stream = connect(HTTP_PORT, PATIENCE)?;
    let start = Instant::now();
    write!(stream, "POST /bulk HTTP/1.1\r\nHost: guest\r\nContent-Length: {bytes}\r\n\r\n")?;
    let mut part = vec![0; PART];
    let (mut at, mut crc) = (0, 0);
    while at < bytes {
        let count = (bytes - at).min(PART as u64) as usize;
        fill(seed, at, &mut part[..count]);
        crc = crc32c::crc32c_append(crc, &part[..count]);
        stream.write_all(&part[..count])?;
        at += count as u64;
    }
    let mut http = Http::on(stream);
    let (status, length) = http.answer()?;
    let mut body = vec![0; length as usize];
    http.body().read_exact(&mut body)?;
    let (got, expected) =
        (String::from_utf8_lossy(&body).into_owned(), format!("{{\"bytes\":{bytes},\"crc32c\":\"{crc:08x}\"}}\n"));
    if status != 200 || got != expected {
        return Err(io::Error::other(format!("upload: status {status}, {got:?} instead of {expected:?}")));
    }
    Ok(start.elapsed())
}
