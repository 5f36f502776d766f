//! The messages of a viewer (RFC 6143, 7.5, and QEMU's own).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::encode::encoding;
use crate::pixel::PixelFormat;
use crate::screen::Rect;

/// The longest text that a viewer may send; it is not used.
const LONGEST_TEXT: u32 = 1 << 20;

/// What a viewer's list of encodings says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// ZRLE may be sent.
    pub zrle: bool,
    /// The screen's size may change.
    pub desktop_size: bool,
    /// It wants to know whether positions or movements are wanted.
    pub pointer_change: bool,
    /// It can send codes of keys.
    pub extended_keys: bool,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Pixels shall look like this.
    Format(PixelFormat),
    /// Encodings that it knows.
    Encodings(Abilities),
    /// It wants pixels, of the whole area or of what has changed.
    Update { incremental: bool, area: Rect },
    /// A key; with its code (set 1, bit 7 for those after `e0`) where it is known.
    Key { down: bool, keysym: u32, scancode: Option<u8> },
    /// The pointer.
    Pointer { buttons: u8, x: u16, y: u16 },
    /// Something that has no effect here.
    Nothing,
}

/// Something that the protocol does not have.
pub fn violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn bytes<const N: usize>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Reads a message. Takes no more memory than a small buffer, whatever comes.
///
/// # Errors
/// Those of the connection; `InvalidData` where the protocol is broken.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Message> {
    let number = |b: &[u8], at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    Ok(match from.read_u8().await? {
        0 => {
            let b = bytes::<19>(from).await?;
            let mut format = [0; 16];
            format.copy_from_slice(&b[3..]);
            Message::Format(PixelFormat::parse(&format).ok_or_else(|| violation("a pixel format"))?)
        }
        2 => {
            let b = bytes::<3>(from).await?;
            let mut abilities = Abilities::default();
            for _ in 0..number(&b, 1) {
                match i32::from_be_bytes(bytes(from).await?) {
                    encoding::ZRLE => abilities.zrle = true,
                    encoding::DESKTOP_SIZE => abilities.desktop_size = true,
                    encoding::POINTER_CHANGE => abilities.pointer_change = true,
                    encoding::EXTENDED_KEYS => abilities.extended_keys = true,
                    _ => {}
                }
            }
            Message::Encodings(abilities)
        }
        3 => {
            let b = bytes::<9>(from).await?;
            let area = Rect { x: number(&b, 1), y: number(&b, 3), width: number(&b, 5), height: number(&b, 7) };
            Message::Update { incremental: b[0] != 0, area }
        }
        4 => {
            let b = bytes::<7>(from).await?;
            let keysym = u32::from_be_bytes([b[3], b[4], b[5], b[6]]);
            Message::Key { down: b[0] != 0, keysym, scancode: None }
        }
        5 => {
            let b = bytes::<5>(from).await?;
            Message::Pointer { buttons: b[0], x: number(&b, 1), y: number(&b, 3) }
        }
        6 => {
            let b = bytes::<7>(from).await?;
            let length = u32::from_be_bytes([b[3], b[4], b[5], b[6]]);
            // Of the extended form (a negative length) nothing was offered.
            if length > LONGEST_TEXT {
                return Err(violation("a text"));
            }
            skip(from, length).await?;
            Message::Nothing
        }
        255 => match from.read_u8().await? {
            0 => {
                let b = bytes::<10>(from).await?;
                let keysym = u32::from_be_bytes([b[2], b[3], b[4], b[5]]);
                let code = u32::from_be_bytes([b[6], b[7], b[8], b[9]]);
                // Codes after e0 come as 0xe0xx, or with bit 7.
                let scancode = match code {
                    0xe000..=0xe07f => Some(code as u8 | 0x80),
                    0x01..=0xff => Some(code as u8),
                    _ => None,
                };
                Message::Key { down: number(&b, 0) != 0, keysym, scancode }
            }
            _ => return Err(violation("a message of QEMU's")),
        },
        _ => return Err(violation("a message")),
    })
}

async fn skip(from: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut from.take(length.into()), &mut tokio::io::sink()).await?;
    if skipped == u64::from(length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
