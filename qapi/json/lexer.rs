//! Cuts bytes into tokens, one byte at a time.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    LCurly,
    RCurly,
    LSquare,
    RSquare,
    Colon,
    Comma,
    Integer,
    Float,
    Keyword,
    /// With its quotes.
    String,
    /// Bytes that start no token.
    Error,
    /// A token that outgrew [`MAX_TOKEN_SIZE`].
    Oversized,
}

/// A token, its text being what the lexer has gathered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: TokenKind,
    pub text: Vec<u8>,
}

/// No token may be longer, in bytes.
pub(super) const MAX_TOKEN_SIZE: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    /// After an error: drops bytes up to one that may start something new.
    Recovery,
    Quoted(u8),
    Escaped(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    ExponentMark,
    ExponentSign,
    Exponent,
    Keyword,
}

/// What a byte does to a state.
enum Step {
    /// The byte belongs to the token, which goes on.
    Go(State),
    /// The byte ends the token and belongs to it.
    Last(TokenKind),
    /// The token ended before the byte, which is looked at again.
    Before(TokenKind),
    /// The byte cannot stand here.
    Bad,
}

/// The lexer.
#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
}

impl Default for Lexer {
    fn default() -> Self {
        Self { state: State::Start, text: Vec::new() }
    }
}

impl Lexer {
    /// True between tokens.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Start | State::Recovery)
    }

    /// Takes one byte; it may complete up to two tokens (a number and the comma behind it).
    pub fn push(&mut self, byte: u8) -> [Option<Token>; 2] {
        let first = match self.step(byte) {
            Step::Before(kind) => {
                self.state = State::Start;
                Some(self.token(kind))
            }
            step => return [self.apply(step, byte), None],
        };
        // Nothing ends before its first byte, so this is never `Before` again.
        let step = self.step(byte);
        [first, self.apply(step, byte)]
    }

    fn token(&mut self, kind: TokenKind) -> Token {
        Token { kind, text: std::mem::take(&mut self.text) }
    }

    fn apply(&mut self, step: Step, byte: u8) -> Option<Token> {
        match step {
            Step::Go(State::Start) => {
                self.state = State::Start;
                None
            }
            Step::Go(State::Recovery) => None,
            Step::Go(state) => {
                self.state = state;
                self.text.push(byte);
                if self.text.len() > MAX_TOKEN_SIZE {
                    self.state = State::Start;
                    return Some(self.token(TokenKind::Oversized));
                }
                None
            }
            Step::Last(kind) => {
                self.state = State::Start;
                self.text.push(byte);
                Some(self.token(kind))
            }
            Step::Bad => {
                self.state = State::Recovery;
                self.text.push(byte);
                Some(self.token(TokenKind::Error))
            }
            Step::Before(_) => None,
        }
    }

    fn step(&self, c: u8) -> Step {
        use State::*;
        use TokenKind as T;
        match (self.state, c) {
            (Recovery, b'[' | b']' | b'{' | b'}' | b':' | b',') => self.start(c),
            (Recovery, b'\t' | 0x20..=0xfd) => Step::Go(Recovery),
            // Control characters and impossible bytes are for forcing the stream into a known state.
            (Start | Recovery, _) => self.start(c),

            (Quoted(q), c) if c == q => Step::Last(T::String),
            (Quoted(q), b'\\') => Step::Go(Escaped(q)),
            (Quoted(q) | Escaped(q), 0x20..=0xfd) => Step::Go(Quoted(q)),
            (Quoted(_) | Escaped(_), _) => Step::Bad,

            (Minus, b'0') => Step::Go(Zero),
            (Minus, b'1'..=b'9') => Step::Go(Digits),
            (Zero | Digits, b'.') => Step::Go(Point),
            (Zero, b'0'..=b'9') => Step::Bad,
            (Digits, b'0'..=b'9') => Step::Go(Digits),
            (Zero | Digits | Fraction, b'e' | b'E') => Step::Go(ExponentMark),
            (Point | Fraction, b'0'..=b'9') => Step::Go(Fraction),
            (ExponentMark, b'-' | b'+') => Step::Go(ExponentSign),
            (ExponentMark | ExponentSign | Exponent, b'0'..=b'9') => Step::Go(Exponent),
            (Keyword, b'a'..=b'z') => Step::Go(Keyword),
            (Zero | Digits, _) => Step::Before(T::Integer),
            (Fraction | Exponent, _) => Step::Before(T::Float),
            (Keyword, _) => Step::Before(T::Keyword),
            _ => Step::Bad,
        }
    }

    fn start(&self, c: u8) -> Step {
        use TokenKind as T;
        match c {
            b' ' | b'\t' | b'\r' | b'\n' => Step::Go(State::Start),
            b'{' => Step::Last(T::LCurly),
            b'}' => Step::Last(T::RCurly),
            b'[' => Step::Last(T::LSquare),
            b']' => Step::Last(T::RSquare),
            b':' => Step::Last(T::Colon),
            b',' => Step::Last(T::Comma),
            b'"' | b'\'' => Step::Go(State::Quoted(c)),
            b'-' => Step::Go(State::Minus),
            b'0' => Step::Go(State::Zero),
            b'1'..=b'9' => Step::Go(State::Digits),
            b'a'..=b'z' => Step::Go(State::Keyword),
            _ => Step::Bad,
        }
    }
}
