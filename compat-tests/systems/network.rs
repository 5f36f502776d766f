//! What stands at the other end of the guest's network: files by HTTP and TFTP, addresses by DHCP. For one guest that means well.
use lockstep_compat_tests::stage::CLIENT_ADDRESS;
use lockstep_compat_tests::traffic::GUEST;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Port of the HTTP server.
pub const PORT: u16 = 8000;

/// What guests have asked for, in order: `HTTP name`, `TFTP name`, `DHCP request`.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Serves the files of `folder` by HTTP at [`PORT`].
///
/// # Errors
/// If the port is taken.
pub fn serve_http(folder: &Path, log: &Log) -> io::Result<()> {
    let listener = TcpListener::bind((CLIENT_ADDRESS, PORT))?;
    let (folder, log) = (folder.to_path_buf(), log.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (folder, log) = (folder.clone(), log.clone());
            std::thread::spawn(move || answer_http(&stream, &folder, &log));
        }
    });
    Ok(())
}

fn answer_http(stream: &TcpStream, folder: &Path, log: &Log) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut request, mut line) = (String::new(), String::new());
        reader.read_line(&mut request)?;
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let Some(target) = request.split(' ').nth(1) else { return Ok(()) };
        let name = unescape(target.trim_start_matches(['/', '.']));
        log.add(format!("HTTP {name}"));
        let mut out = stream;
        match open(folder, &name) {
            Ok((mut file, length)) => {
                write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
                if !request.starts_with("HEAD") {
                    io::copy(&mut file, &mut out)?;
                }
            }
            Err(_) => write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
}

fn open(folder: &Path, name: &str) -> io::Result<(std::fs::File, u64)> {
    // Plain names only: nothing above or below the folder is served.
    let name = Path::new(name).file_name().ok_or(io::ErrorKind::NotFound)?;
    let file = std::fs::File::open(folder.join(name))?;
    let facts = file.metadata()?;
    if facts.is_file() { Ok((file, facts.len())) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// `%3a` is `:`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('%');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |mut whole, part| match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => {
            whole.push(byte as char);
            whole + &part[2..]
        }
        None => whole + "%" + part,
    })
}

/// Serves the files of `folder` by TFTP (RFC 1350, without options).
///
/// # Errors
/// If the port is taken.
pub fn serve_tftp(folder: &Path, log: &Log) -> io::Result<()> {
    let socket = UdpSocket::bind((CLIENT_ADDRESS, 69))?;
    let (folder, log) = (folder.to_path_buf(), log.clone());
    std::thread::spawn(move || {
        let mut request = [0; 1500];
        while let Ok((count, from)) = socket.recv_from(&mut request) {
            if let Some(name) =
                request[..count].strip_prefix(&[0, 1]).and_then(|rest| rest.split(|byte| *byte == 0).next())
            {
                let name = String::from_utf8_lossy(name).into_owned();
                log.add(format!("TFTP {name}"));
                let folder: PathBuf = folder.clone();
                std::thread::spawn(move || send_tftp(&folder, &name, from));
            }
        }
    });
    Ok(())
}

fn send_tftp(folder: &Path, name: &str, to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((CLIENT_ADDRESS, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    let Ok((mut file, _)) = open(folder, name) else {
        return socket.send(b"\0\x05\0\x01no such file\0").map(drop);
    };
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    let blocks = content.len() / 512 + 1;
    for block in 1..=blocks {
        let data = content.chunks(512).nth(block - 1).unwrap_or_default();
        let packet = [&[0, 3], &(block as u16).to_be_bytes()[..], data].concat();
        let mut answer = [0; 4];
        // A packet that was lost is repeated, some times.
        let told = (0..10).any(|_| {
            socket.send(&packet).is_ok()
                && socket.recv(&mut answer).is_ok()
                && answer[2..] == (block as u16).to_be_bytes()
        });
        if !told {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Gives whoever asks the guest's address (RFC 2131), with `file` to boot by TFTP.
///
/// # Errors
/// If the port is taken.
pub fn serve_dhcp(file: &'static str, log: &Log) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67))?;
    socket.set_broadcast(true)?;
    let log = log.clone();
    std::thread::spawn(move || {
        let mut request = [0; 1500];
        while let Ok((count, _)) = socket.recv_from(&mut request) {
            let Some((kind, answer)) = answer_dhcp(&request[..count], file) else { continue };
            log.add(format!("DHCP {kind}"));
            // All of the guest's network, because the guest has no address yet.
            let _ = socket.send_to(&answer, (Ipv4Addr::new(GUEST[0], GUEST[1], GUEST[2], 255), 68));
        }
    });
    Ok(())
}

const OPTIONS_AT: usize = 240;

fn answer_dhcp(request: &[u8], file: &str) -> Option<(&'static str, Vec<u8>)> {
    let mut options = request.get(OPTIONS_AT..)?;
    let kind = loop {
        match options {
            [53, 1, kind, ..] => break *kind,
            [0, rest @ ..] => options = rest,
            [_, length, rest @ ..] => options = rest.get(usize::from(*length)..)?,
            _ => return None,
        }
    };
    let (name, answer) = match kind {
        1 => ("discover", 2),
        3 => ("request", 5),
        _ => return None,
    };
    let server: Ipv4Addr = CLIENT_ADDRESS.parse().ok()?;
    let mut reply = request[..OPTIONS_AT].to_vec();
    reply[0] = 2;
    reply[16..20].copy_from_slice(&GUEST);
    reply[20..24].copy_from_slice(&server.octets());
    reply[44..OPTIONS_AT - 4].fill(0);
    reply[108..108 + file.len()].copy_from_slice(file.as_bytes());
    reply.extend([53, 1, answer, 54, 4]);
    reply.extend(server.octets());
    reply.extend([51, 4, 0, 0, 0x0e, 0x10, 1, 4, 255, 255, 255, 0, 3, 4]);
    reply.extend(server.octets());
    reply.push(255);
    Some((name, reply))
}
