//! Reads the schema language: a sequence of dictionaries with single-quoted strings and `#` comments.
//!
//! The language is the one of QEMU's interface schema (docs/devel/qapi-code-gen). A comment that stands directly before an
//! expression is its documentation.

/// A value of the schema language.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Str(String),
    Bool(bool),
    List(Vec<Value>),
    Dict(Vec<(String, Value)>),
}

impl Value {
    /// The entry of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Dict(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) => Some(s),
            _ => None,
        }
    }

    /// True only for the literal `true`.
    pub fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }
}

/// One top-level expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// The dictionary.
    pub body: Value,
    /// The comment block directly above, without the marks.
    pub doc: String,
    /// Where it begins, counted from 1.
    pub line: usize,
}

/// Parses a whole file.
pub fn parse(text: &str) -> Result<Vec<Expr>, String> {
    let mut p = Parser { text: text.as_bytes(), at: 0, line: 1, doc: String::new(), blank: false };
    let mut exprs = Vec::new();
    loop {
        p.skip(true);
        if p.at == p.text.len() {
            return Ok(exprs);
        }
        let (line, doc) = (p.line, std::mem::take(&mut p.doc));
        let body = p.value().map_err(|e| format!("line {}: {e}", p.line))?;
        if !matches!(body, Value::Dict(_)) {
            return Err(format!("line {line}: an expression must be a dictionary"));
        }
        exprs.push(Expr { body, doc, line });
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    doc: String,
    blank: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Skips blanks and comments; at the top level comments are kept as documentation, and an empty line drops them.
    fn skip(&mut self, top: bool) {
        while let Some(c) = self.peek() {
            match c {
                b'#' => {
                    let end =
                        self.text[self.at..].iter().position(|&c| c == b'\n').map_or(self.text.len(), |n| self.at + n);
                    let comment = String::from_utf8_lossy(&self.text[self.at..end]);
                    let comment = comment.trim_start_matches('#').trim();
                    if top {
                        if !self.doc.is_empty() && !comment.is_empty() {
                            self.doc.push('\n');
                        }
                        self.doc.push_str(comment);
                    }
                    self.at = end;
                    self.blank = false;
                }
                b'\n' => {
                    if self.blank {
                        self.doc.clear();
                    }
                    self.blank = true;
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                _ => {
                    self.blank = false;
                    return;
                }
            }
            // The end of a comment's own line is not an empty line.
            if c == b'#' && self.peek() == Some(b'\n') {
                self.at += 1;
                self.line += 1;
                self.blank = true;
            }
        }
    }

    fn next(&mut self) -> Result<u8, String> {
        self.skip(false);
        self.peek().ok_or_else(|| "unexpected end of file".to_owned())
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.next()? {
            b'{' => self.dict(),
            b'[' => self.list(),
            b'\'' => self.string().map(Value::Str),
            b't' | b'f' => self.boolean(),
            c => Err(format!("unexpected '{}'", c as char)),
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let start = self.at + 1;
        let len = self.text[start..].iter().position(|&c| c == b'\'' || c == b'\n').ok_or("unterminated string")?;
        if self.text[start + len] == b'\n' {
            return Err("unterminated string".into());
        }
        self.at = start + len + 1;
        String::from_utf8(self.text[start..start + len].to_vec()).map_err(|_| "string is not UTF-8".into())
    }

    fn boolean(&mut self) -> Result<Value, String> {
        for (word, value) in [("true", true), ("false", false)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(Value::Bool(value));
            }
        }
        Err("unexpected word".into())
    }

    fn dict(&mut self) -> Result<Value, String> {
        self.at += 1;
        let mut entries: Vec<(String, Value)> = Vec::new();
        if self.next()? == b'}' {
            self.at += 1;
            return Ok(Value::Dict(entries));
        }
        loop {
            if self.next()? != b'\'' {
                return Err("a key must be a string".into());
            }
            let key = self.string()?;
            if self.next()? != b':' {
                return Err("expected ':'".into());
            }
            self.at += 1;
            if entries.iter().any(|(k, _)| *k == key) {
                return Err(format!("duplicate key '{key}'"));
            }
            let value = self.value()?;
            entries.push((key, value));
            match self.next()? {
                b',' => self.at += 1,
                b'}' => break,
                _ => return Err("expected ',' or '}'".into()),
            }
        }
        self.at += 1;
        Ok(Value::Dict(entries))
    }

    fn list(&mut self) -> Result<Value, String> {
        self.at += 1;
        let mut items = Vec::new();
        if self.next()? == b']' {
            self.at += 1;
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value()?);
            match self.next()? {
                b',' => self.at += 1,
                b']' => break,
                _ => return Err("expected ',' or ']'".into()),
            }
        }
        self.at += 1;
        Ok(Value::List(items))
    }
}
