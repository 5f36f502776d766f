//! Builds values from tokens as they come, with a stack of open containers instead of recursion.
//!
//! A request ends where its brackets balance, also a malformed one: its first error is reported there.

use super::lexer::{Lexer, MAX_TOKEN_SIZE, Token, TokenKind};
use crate::wire::Map;
use lockstep_util::{Error, Result, err};
use serde_json::{Number, Value};

/// A value may have no more tokens.
const MAX_TOKEN_COUNT: usize = 2 << 20;
/// Containers may not be nested deeper.
const MAX_NESTING: i64 = 1 << 10;
/// QEMU cuts the text of a syntax error to this many bytes.
const MAX_MESSAGE: usize = 1023;

/// What an open container waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The first key or element, or the end.
    FirstOrEnd,
    Key,
    Colon,
    Value,
    CommaOrEnd,
}

#[derive(Debug)]
enum Container {
    Object(Map, String),
    Array(Vec<Value>),
}

#[derive(Debug)]
struct Open {
    container: Container,
    wait: Wait,
}

/// Reads a stream of values. Memory is bounded by QEMU's limits: 64 MiB of text, 2 Mi tokens, 1024 levels.
#[derive(Debug, Default)]
pub struct Reader {
    lexer: Lexer,
    stack: Vec<Open>,
    braces: i64,
    brackets: i64,
    tokens: usize,
    size: usize,
    error: Option<Error>,
}

impl Reader {
    /// Takes one byte; it may complete up to two values or errors.
    pub fn push(&mut self, byte: u8) -> [Option<Result<Value>>; 2] {
        self.lexer.push(byte).map(|token| self.token(token?))
    }

    /// True if nothing is pending: the last value is complete.
    pub fn is_idle(&self) -> bool {
        self.lexer.is_idle() && self.tokens == 0
    }

    fn token(&mut self, token: Token) -> Option<Result<Value>> {
        match token.kind {
            TokenKind::LCurly => self.braces += 1,
            TokenKind::RCurly => self.braces -= 1,
            TokenKind::LSquare => self.brackets += 1,
            TokenKind::RSquare => self.brackets -= 1,
            TokenKind::Error => return self.fail(err!("JSON parse error, stray '{}'", c_string(&token.text))),
            _ => {}
        }
        if token.kind == TokenKind::Oversized || self.size + token.text.len() + 1 > MAX_TOKEN_SIZE {
            return self.fail(err!("JSON token size limit exceeded"));
        }
        if self.tokens + 1 > MAX_TOKEN_COUNT {
            return self.fail(err!("JSON token count limit exceeded"));
        }
        if self.brackets + self.braces > MAX_NESTING {
            return self.fail(err!("JSON nesting depth limit exceeded"));
        }
        self.size += token.text.len();
        self.tokens += 1;

        let mut done = None;
        if self.error.is_none() {
            match self.accept(token) {
                Ok(value) => done = value,
                Err(e) => {
                    self.error = Some(e);
                    self.stack.clear();
                }
            }
        }
        if (self.braces > 0 || self.brackets > 0) && self.braces >= 0 && self.brackets >= 0 {
            return None;
        }
        match (self.error.take(), done) {
            (Some(e), _) => self.fail(e),
            (None, Some(value)) => {
                self.reset();
                Some(Ok(value))
            }
            (None, None) => self.fail(err!("JSON parse error, premature EOI")),
        }
    }

    fn reset(&mut self) {
        let lexer = std::mem::take(&mut self.lexer);
        *self = Self { lexer, ..Self::default() };
    }

    fn fail(&mut self, e: Error) -> Option<Result<Value>> {
        self.reset();
        Some(Err(e))
    }

    /// Gives a token to the innermost container. Returns the value that it completes at the top.
    fn accept(&mut self, token: Token) -> Result<Option<Value>> {
        use TokenKind as T;
        let Some(open) = self.stack.last_mut() else { return self.value(token) };
        let object = matches!(open.container, Container::Object(..));
        match (open.wait, token.kind) {
            (Wait::FirstOrEnd | Wait::CommaOrEnd, T::RCurly) if object => self.close(),
            (Wait::FirstOrEnd | Wait::CommaOrEnd, T::RSquare) if !object => self.close(),
            (Wait::FirstOrEnd | Wait::Key | Wait::Value, _) => self.value(token),
            (Wait::Colon, T::Colon) => {
                open.wait = Wait::Value;
                Ok(None)
            }
            (Wait::Colon, _) => Err(syntax("missing : in object pair")),
            (Wait::CommaOrEnd, T::Comma) => {
                open.wait = if object { Wait::Key } else { Wait::Value };
                Ok(None)
            }
            (Wait::CommaOrEnd, _) if object => Err(syntax("expected separator in dict")),
            (Wait::CommaOrEnd, _) => Err(syntax("expected separator in list")),
        }
    }

    fn close(&mut self) -> Result<Option<Value>> {
        match self.stack.pop().map(|open| open.container) {
            Some(Container::Object(map, _)) => self.complete(Value::Object(map)),
            Some(Container::Array(items)) => self.complete(Value::Array(items)),
            None => Ok(None),
        }
    }

    fn value(&mut self, token: Token) -> Result<Option<Value>> {
        let open = |container| Open { container, wait: Wait::FirstOrEnd };
        match token.kind {
            TokenKind::LCurly => self.stack.push(open(Container::Object(Map::new(), String::new()))),
            TokenKind::LSquare => self.stack.push(open(Container::Array(Vec::new()))),
            TokenKind::String => return self.complete(Value::String(decode_string(&token.text)?)),
            TokenKind::Integer | TokenKind::Float => return self.complete(Value::Number(number(&token)?)),
            TokenKind::Keyword => {
                let value = match token.text.as_slice() {
                    b"true" => Value::Bool(true),
                    b"false" => Value::Bool(false),
                    b"null" => Value::Null,
                    word => return Err(syntax(&format!("invalid keyword '{}'", c_string(word)))),
                };
                return self.complete(value);
            }
            _ => return Err(syntax("expecting value")),
        }
        Ok(None)
    }

    /// Puts a complete value where it belongs.
    fn complete(&mut self, value: Value) -> Result<Option<Value>> {
        let Some(open) = self.stack.last_mut() else { return Ok(Some(value)) };
        match &mut open.container {
            Container::Array(items) => {
                items.push(value);
                open.wait = Wait::CommaOrEnd;
            }
            Container::Object(map, key) if open.wait == Wait::Value => {
                let key = std::mem::take(key);
                if map.contains_key(&key) {
                    return Err(syntax("duplicate key"));
                }
                map.insert(key, value);
                open.wait = Wait::CommaOrEnd;
            }
            Container::Object(_, key) => {
                let Value::String(s) = value else { return Err(syntax("key is not a string in object")) };
                *key = s;
                open.wait = Wait::Colon;
            }
        }
        Ok(None)
    }
}

fn syntax(message: &str) -> Error {
    let end = (0..=message.len().min(MAX_MESSAGE)).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
    err!("JSON parse error, {}", &message[..end])
}

/// Text as C prints it: up to the first zero byte.
fn c_string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number: signed, else unsigned, else floating point. What no double can hold becomes the largest one.
fn number(token: &Token) -> Result<Number> {
    let text = std::str::from_utf8(&token.text).map_err(|_| syntax("expecting value"))?;
    if token.kind == TokenKind::Integer {
        if let Ok(n) = text.parse::<i64>() {
            return Ok(n.into());
        }
        if let Ok(n) = text.parse::<u64>() {
            return Ok(n.into());
        }
    }
    let x: f64 = text.parse().map_err(|_| syntax("expecting value"))?;
    Number::from_f64(x.clamp(f64::MIN, f64::MAX)).ok_or_else(|| syntax("expecting value"))
}

/// Decodes a string token. Unicode's noncharacters are refused; U+0000 may also come as the bytes C0 80.
fn decode_string(token: &[u8]) -> Result<String> {
    let body = &token[1..token.len() - 1];
    let mut out = String::with_capacity(body.len());
    let mut at = 0;
    while at < body.len() {
        let plain = body[at..].iter().position(|&b| b == b'\\').unwrap_or(body.len() - at);
        push_utf8(&body[at..at + plain], &mut out)?;
        at += plain;
        let Some(&escape) = body.get(at + 1) else { break };
        at += 2;
        match escape {
            b'"' | b'\'' | b'\\' | b'/' => out.push(escape as char),
            b'b' => out.push('\x08'),
            b'f' => out.push('\x0c'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => at += push_escaped(body, at, token, &mut out)?,
            _ => return Err(syntax("invalid escape sequence in string")),
        }
    }
    Ok(out)
}

/// Decodes what follows `\u` at `at`; returns how many bytes it took.
fn push_escaped(body: &[u8], at: usize, token: &[u8], out: &mut String) -> Result<usize> {
    let hex = |at: usize| {
        let digits = std::str::from_utf8(body.get(at..at + 4)?).ok()?;
        // `from_str_radix` would take a sign.
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let mut len = 4;
    let mut code = hex(at);
    if let Some(high @ 0xd800..=0xdbff) = code
        && body.get(at + 4..at + 6) == Some(b"\\u")
    {
        code = match hex(at + 6) {
            Some(low @ 0xdc00..=0xdfff) => {
                len = 10;
                Some(0x10000 + ((high & 0x3ff) << 10) + (low & 0x3ff))
            }
            _ => None,
        };
    }
    match code.and_then(char::from_u32).filter(|c| !is_noncharacter(*c)) {
        Some(c) => {
            out.push(c);
            Ok(len)
        }
        None => {
            // The position within the token is one further: its quote.
            let start = at - 1;
            let end = (start + 2 + len).min(token.len());
            Err(syntax(&format!("{} is not a valid Unicode character", c_string(&token[start..end]))))
        }
    }
}

fn push_utf8(bytes: &[u8], out: &mut String) -> Result<()> {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(s) => return push_checked(s, out),
            Err(e) => {
                let (good, bad) = rest.split_at(e.valid_up_to());
                push_checked(std::str::from_utf8(good).unwrap_or_default(), out)?;
                match bad.strip_prefix(b"\xc0\x80") {
                    Some(after) => {
                        out.push('\0');
                        rest = after;
                    }
                    None => return Err(syntax("invalid UTF-8 sequence in string")),
                }
            }
        }
    }
}

fn push_checked(s: &str, out: &mut String) -> Result<()> {
    if s.chars().any(is_noncharacter) {
        return Err(syntax("invalid UTF-8 sequence in string"));
    }
    out.push_str(s);
    Ok(())
}

fn is_noncharacter(c: char) -> bool {
    let c = u32::from(c);
    (0xfdd0..=0xfdef).contains(&c) || c & 0xfffe == 0xfffe
}
