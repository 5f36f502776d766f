//! A small HTTP/1.1 client with one kept connection.
use super::{HTTP_PORT, PATIENCE, connect};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A connection to the guest's HTTP service.
pub struct Http {
    reader: BufReader<TcpStream>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Http {
    /// Opens a connection.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn open() -> io::Result<Self> {
        Ok(Self::on(connect(HTTP_PORT, PATIENCE)?))
    }

    /// Uses an open connection.
    pub fn on(stream: TcpStream) -> Self {
        Self { reader: BufReader::with_capacity(256 << 10, stream) }
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// If the connection fails or the answer is no HTTP.
    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<Response> {
        let (status, length) = self.start(method, target, body)?;
        let mut body = vec![0; length as usize];
        self.reader.read_exact(&mut body)?;
        Ok(Response { status, body })
    }

    /// GET that must succeed.
    ///
    /// # Errors
    /// As [`request`](Self::request), and if the status is not 200.
    pub fn get(&mut self, target: &str) -> io::Result<Response> {
        let response = self.request("GET", target, &[])?;
        if response.status != 200 {
            return Err(io::Error::other(format!("GET {target}: status {}", response.status)));
        }
        Ok(response)
    }

    /// Sends a request and reads the answer's head: status and length of the body, which [`body`](Self::body) then gives.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn start(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<(u16, u64)> {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: guest\r\nContent-Length: {}\r\n\r\n", body.len());
        let stream = self.reader.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        self.answer()
    }

    /// The stream below, to send a body piece by piece.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// What is read of an answer's body.
    pub fn body(&mut self) -> &mut impl Read {
        &mut self.reader
    }

    /// Reads the head of an answer.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn answer(&mut self) -> io::Result<(u16, u64)> {
        let bad = |line: &str| io::Error::other(format!("no HTTP: {line:?}"));
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad(&line))?;
        let mut length = 0;
        loop {
            line.clear();
            self.reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().map_err(|_| bad(&line))?;
                }
                Some(_) => {}
                None if line == "\r\n" => return Ok((status, length)),
                None => return Err(bad(&line)),
            }
        }
    }
}
