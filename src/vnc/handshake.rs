//! Versions and authentication (RFC 6143, 7.1 to 7.3).

use std::io;

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::violation;

const NONE: u8 = 1;
const VNC: u8 = 2;

/// Who may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Free,
    /// Who has the password; nobody where there is none, or it has expired.
    Password(Option<String>),
}

/// Talks to a viewer until it has sent its first message after authentication. Returns whether it shares the screen.
///
/// # Errors
/// Those of the connection; `InvalidData` where the protocol is broken, `PermissionDenied` where the password is wrong.
pub async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    access: impl Fn() -> Access,
) -> io::Result<bool> {
    stream.write_all(b"RFB 003.008\n").await?;
    let mut version = [0; 12];
    stream.read_exact(&mut version).await?;
    let minor = minor_version(&version).ok_or_else(|| violation("a version"))?;
    let offered = if access() == Access::Free { NONE } else { VNC };
    if minor < 7 {
        stream.write_u32(offered.into()).await?;
    } else {
        stream.write_all(&[1, offered]).await?;
        if stream.read_u8().await? != offered {
            refuse(stream, minor, "Authentication failed").await?;
            return Err(violation("a kind of authentication that was not offered"));
        }
    }
    if offered == VNC {
        let mut challenge = [0; 16];
        random(&mut challenge)?;
        stream.write_all(&challenge).await?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await?;
        // Asked for only now: it may have been changed or expired in the meantime.
        let right = matches!(access(), Access::Password(Some(password)) if respond(&password, challenge) == answer);
        if !right {
            refuse(stream, minor, "Authentication failed").await?;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    if minor >= 8 || offered == VNC {
        stream.write_u32(0).await?;
    }
    Ok(stream.read_u8().await? != 0)
}

async fn refuse(stream: &mut (impl AsyncWrite + Unpin), minor: u8, why: &str) -> io::Result<()> {
    stream.write_u32(1).await?;
    if minor >= 8 {
        stream.write_u32(why.len() as u32).await?;
        stream.write_all(why.as_bytes()).await?;
    }
    stream.flush().await
}

/// 3, 7 or 8.
fn minor_version(text: &[u8; 12]) -> Option<u8> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix("RFB 003.")?.strip_suffix('\n')?;
    Some(match text.parse::<u16>().ok()? {
        ..3 => return None,
        3..7 => 3,
        7 => 7,
        8.. => 8,
    })
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let filled = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The answer to a challenge: DES by the password's first eight bytes, each with its bits reversed (7.2.2).
pub fn respond(password: &str, challenge: [u8; 16]) -> [u8; 16] {
    let mut key = [0u8; 8];
    for (key, byte) in key.iter_mut().zip(password.bytes()) {
        *key = byte.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut answer = [0; 16];
    for (block, out) in challenge.chunks_exact(8).zip(answer.chunks_exact_mut(8)) {
        let mut plain = [0u8; 8];
        plain.copy_from_slice(block);
        let mut block = plain.into();
        cipher.encrypt_block(&mut block);
        out.copy_from_slice(&block);
    }
    answer
}
