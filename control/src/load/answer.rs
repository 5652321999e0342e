//! Reads one HTTP/1.1 answer from pieces of any size, keeping nothing of its body.
//!
//! Strict where an answer's end depends on it: what is ambiguous there is refused, because a generator that loses step
//! with the server would count one answer for another's. Memory is bounded by [`HEAD_MAX`].

/// Longest head, chunk line or trailer.
const HEAD_MAX: usize = 16 << 10;
/// Most fields of a head.
const FIELDS_MAX: usize = 64;

/// An answer that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: u16,
    /// Whether the connection can take another request.
    pub(super) keep: bool,
}

/// What came is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The answer that is being read.
#[derive(Debug, Default)]
pub(super) struct Answer {
    part: Part,
    /// What has come of a head or a line that is not complete.
    pending: Vec<u8>,
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    /// So many bytes of body are left.
    Length(u64),
    /// Body up to the end of the connection.
    UntilClose,
    ChunkSize,
    /// So many bytes of a chunk are left, and the line end behind them.
    Chunk(u64),
    ChunkEnd,
    Trailer,
}

impl Answer {
    /// Takes the next bytes; `Some` once the answer has ended with the last of them.
    ///
    /// **Errors:** they are no answer, or go on after its end.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Ended>, Malformed> {
        while !bytes.is_empty() {
            if self.part == Part::Head {
                bytes = self.head(bytes)?;
            } else {
                bytes = self.body(bytes)?;
            }
            if let Some(ended) = self.take_ended() {
                return if bytes.is_empty() { Ok(Some(ended)) } else { Err(Malformed) };
            }
        }
        Ok(None)
    }

    /// The connection has ended; `Some` if that was the answer's end.
    pub(super) fn close(&mut self) -> Option<Ended> {
        let ended = if self.part == Part::UntilClose { self.ended.take() } else { None };
        self.restart();
        ended
    }

    /// Forgets what has come; the next bytes begin an answer.
    pub(super) fn restart(&mut self) {
        self.part = Part::Head;
        self.pending.clear();
        self.ended = None;
    }

    /// The end, if the body has just been completed.
    fn take_ended(&mut self) -> Option<Ended> {
        if self.part != Part::Length(0) {
            return None;
        }
        let ended = self.ended.take();
        self.restart();
        ended
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Malformed> {
        if self.pending.is_empty() {
            // As a rule a head comes whole, and nothing is copied.
            if let Some((part, ended, length)) = parse_head(bytes)? {
                return Ok(self.begin(part, ended, bytes.get(length..).unwrap_or_default()));
            }
            self.pending.extend_from_slice(bytes);
            return Ok(&[]);
        }
        let before = self.pending.len();
        let taken = bytes.len().min(HEAD_MAX.saturating_sub(before));
        self.pending.extend(bytes.iter().take(taken));
        let Some((part, ended, length)) = parse_head(&self.pending)? else {
            return Ok(&[]);
        };
        let used = length.checked_sub(before).ok_or(Malformed)?;
        Ok(self.begin(part, ended, bytes.get(used..).unwrap_or_default()))
    }

    fn begin<'a>(&mut self, part: Part, ended: Ended, rest: &'a [u8]) -> &'a [u8] {
        self.pending.clear();
        self.part = part;
        self.ended = (part != Part::Head).then_some(ended);
        rest
    }

    fn body<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Malformed> {
        match self.part {
            Part::Head | Part::UntilClose => Ok(&[]),
            Part::Length(left) => {
                let (left, rest) = skip(left, bytes);
                self.part = Part::Length(left);
                Ok(rest)
            }
            Part::Chunk(left) => {
                let (left, rest) = skip(left, bytes);
                self.part = if left == 0 { Part::ChunkEnd } else { Part::Chunk(left) };
                Ok(rest)
            }
            Part::ChunkSize | Part::ChunkEnd | Part::Trailer => self.line(bytes),
        }
    }

    /// A line between chunks.
    fn line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Malformed> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        if self.pending.len() + piece.len() > HEAD_MAX {
            return Err(Malformed);
        }
        self.pending.extend_from_slice(piece);
        if end.is_none() {
            return Ok(rest);
        }
        let line = self.pending.strip_suffix(b"\r\n").ok_or(Malformed)?;
        self.part = match self.part {
            Part::ChunkSize => match chunk_size(line)? {
                0 => Part::Trailer,
                size => Part::Chunk(size),
            },
            Part::ChunkEnd if line.is_empty() => Part::ChunkSize,
            Part::Trailer if line.is_empty() => Part::Length(0),
            Part::Trailer => Part::Trailer,
            _ => return Err(Malformed),
        };
        self.pending.clear();
        Ok(rest)
    }
}

/// What is left to skip, and of the bytes.
fn skip(left: u64, bytes: &[u8]) -> (u64, &[u8]) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (left - taken as u64, bytes.get(taken..).unwrap_or_default())
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next().unwrap_or_default();
    if !(1..=16).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed);
    }
    std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or(Malformed)
}

/// How the body goes on after a head that is complete, and the head's length.
fn parse_head(bytes: &[u8]) -> Result<Option<(Part, Ended, usize)>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(_) | Err(_) => return Err(Malformed),
    };
    let status = head.code.ok_or(Malformed)?;
    let mut keep = head.version == Some(1);
    let (mut sized, mut chunked) = (None, false);
    for field in head.headers.iter() {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("content-length") {
            let size = number(value)?;
            if sized.replace(size).is_some_and(|other| other != size) {
                return Err(Malformed);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed);
            }
            chunked = true;
        } else if field.name.eq_ignore_ascii_case("connection") {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    keep = false;
                } else if option.eq_ignore_ascii_case(b"keep-alive") && head.version == Some(0) {
                    keep = true;
                }
            }
        }
    }
    let part = match (status, chunked, sized) {
        // An interim answer: the real one follows.
        (100 | 102..=199, ..) => Part::Head,
        (101, ..) | (_, true, Some(_)) => return Err(Malformed),
        (204 | 304, ..) => Part::Length(0),
        (_, true, None) => Part::ChunkSize,
        (_, false, Some(size)) => Part::Length(size),
        (_, false, None) => Part::UntilClose,
    };
    keep &= part != Part::UntilClose;
    Ok(Some((part, Ended { status, keep }, length)))
}

fn number(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Malformed)
}

#[cfg(test)]
mod tests;
