//! Heads of requests and responses.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::trim;

/// Bytes of a request's head, and of its request line alone.
pub const REQUEST_MAX: usize = 60 * 1024;
/// Bytes of a response's head.
pub const RESPONSE_MAX: usize = 80 * 1024;
/// Header lines of a message.
pub const FIELDS_MAX: usize = 100;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// Where its chunks say.
    Chunked,
    /// With the connection; responses only.
    Close,
}

/// A request's head as it came.
#[derive(Debug)]
pub struct RequestHead {
    /// Any token.
    pub method: Method,
    /// Authority: of an absolute target, else the Host header.
    pub authority: HeaderValue,
    /// Path and query, not yet made plain; `*` of `OPTIONS *`.
    pub path: String,
    /// Whether an absolute target says so.
    pub is_https: bool,
    /// Without Host, which is [`RequestHead::authority`].
    pub headers: HeaderMap,
    /// Where its body ends.
    pub framing: Framing,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// What the client wants to speak instead; HTTP/2 is not what one can change to.
    pub upgrade: Option<HeaderValue>,
}

/// A response's head as it came.
#[derive(Debug)]
pub struct ResponseHead {
    /// Its status.
    pub status: StatusCode,
    /// Without Transfer-Encoding.
    pub headers: HeaderMap,
    /// Where its body ends.
    pub framing: Framing,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
}

/// A head that is not taken; the connection ends with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// The first line, or how a line ends.
    #[error("a line that is not of HTTP/1.1, or does not end in CR LF")]
    Line,
    /// A header line.
    #[error("a header line that is not `name: value`")]
    Field,
    /// The request target.
    #[error("a request target that is no path and no absolute address")]
    Target,
    /// Host.
    #[error("no Host, or one that Connection names")]
    Host,
    /// What Host or the target says.
    #[error("a Host that is none, several, or one that differs from the target's")]
    Authority,
    /// Content-Length, or what it stands beside.
    #[error("lengths that contradict each other, or are none")]
    Length,
    /// Transfer-Encoding.
    #[error("a transfer coding other than chunked")]
    Coding,
    /// A body that would be read as what comes after the upgrade.
    #[error("an upgrade with a body")]
    Upgrade,
    /// HTTP/1.0 and 0.9.
    #[error("HTTP/1.0 or older")]
    OldVersion,
    /// Another version.
    #[error("a version that is not spoken here")]
    Version,
    /// Too many bytes, or lines.
    #[error("more than {} KiB of headers, or more than {FIELDS_MAX} of them", REQUEST_MAX / 1024)]
    TooLarge,
}

/// The search for the end of a head that comes in pieces: each byte is looked at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    at: usize,
    line: usize,
}

impl End {
    /// Length of the head in `input`, its empty line included; none if that has not come yet. The next call gets the same bytes
    /// and more.
    ///
    /// **Errors**: a line that ends otherwise than in CR LF, or `max` bytes without an end.
    pub fn find(&mut self, input: &[u8], max: usize) -> Result<Option<usize>, BadHead> {
        for (at, byte) in input.iter().enumerate().take(max).skip(self.at) {
            match byte {
                b'\n' if at.checked_sub(1).and_then(|before| input.get(before)) != Some(&b'\r') => {
                    return Err(BadHead::Line);
                }
                b'\n' if at - self.line == 1 => return Ok(Some(at + 1)),
                b'\n' => self.line = at + 1,
                0 => return Err(BadHead::Line),
                _ => {}
            }
        }
        self.at = input.len().min(max);
        if input.len() >= max { Err(BadHead::TooLarge) } else { Ok(None) }
    }
}

/// Lines of a head, without their CR LF and without the empty one. A CR elsewhere is refused.
fn lines(head: &[u8]) -> impl Iterator<Item = Result<&[u8], BadHead>> {
    let lines = head.split(|byte| *byte == b'\n').map(|line| match line {
        [line @ .., b'\r'] if !line.contains(&b'\r') => Ok(line),
        _ => Err(BadHead::Line),
    });
    lines.take_while(|line| !matches!(line, Ok([])))
}

/// The request whose head is all of `head`, as [`End::find`] found it.
///
/// **Errors**: see [`BadHead`].
pub fn request(head: &[u8]) -> Result<RequestHead, BadHead> {
    let mut lines = lines(head);
    let (method, target, version) = request_line(lines.next().ok_or(BadHead::Line)??)?;
    match version {
        b"HTTP/1.1" => {}
        b"HTTP/1.0" | b"HTTP/0.9" => return Err(BadHead::OldVersion),
        version if version.starts_with(b"HTTP/") => return Err(BadHead::Version),
        _ => return Err(BadHead::Line),
    }
    let mut headers = fields(lines)?;
    let framing = request_framing(&mut headers)?;
    let host = {
        let mut all = headers.get_all(HOST).iter();
        match (all.next(), all.next()) {
            (Some(host), None) if is_authority(host.as_bytes()) => host.clone(),
            (Some(_), _) => return Err(BadHead::Authority),
            (None, _) => return Err(BadHead::Host),
        }
    };
    headers.remove(HOST);
    let Target { path, authority, is_https } = target_of(&method, target)?;
    let authority = match authority {
        // As Envoy has it, whose CONNECT is for its target, whatever the Host says.
        Some(authority) if method == Method::CONNECT => {
            HeaderValue::from_bytes(authority).map_err(|_| BadHead::Target)?
        }
        Some(authority) if same_authority(authority, host.as_bytes(), is_https) => {
            HeaderValue::from_bytes(authority).map_err(|_| BadHead::Target)?
        }
        Some(_) => return Err(BadHead::Authority),
        None => host,
    };
    let options = options(&headers);
    if options.iter().any(|option| option == "host") {
        return Err(BadHead::Host);
    }
    let upgrade = upgrade(&mut headers, &options);
    if upgrade.is_some() && framing != Framing::Empty {
        return Err(BadHead::Upgrade);
    }
    // What follows a CONNECT is not ours to read, whatever it is answered with.
    let keep_alive = method != Method::CONNECT && !options.iter().any(|option| option == "close");
    Ok(RequestHead { method, authority, path, is_https, headers, framing, keep_alive, upgrade })
}

/// The response to a request of this method, from its whole head.
///
/// **Errors**: see [`BadHead`].
pub fn response(head: &[u8], method: &Method) -> Result<ResponseHead, BadHead> {
    let mut lines = lines(head);
    let line = lines.next().ok_or(BadHead::Line)??;
    let (is_new, rest) = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ (b'0' | b'1'), b' ', rest @ ..] => {
            (*minor == b'1', rest)
        }
        _ => return Err(BadHead::Version),
    };
    let (code, reason) = rest.split_at_checked(3).ok_or(BadHead::Line)?;
    if !matches!(reason, [] | [b' ', ..]) {
        return Err(BadHead::Line);
    }
    let status = StatusCode::from_bytes(code).map_err(|_| BadHead::Line)?;
    let mut headers = fields(lines)?;
    let options = options(&headers);
    let says = |what: &str| options.iter().any(|option| option == what);
    let no_body = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = length(&headers)?;
    let chunked = chunked(&headers)?;
    if chunked && length.is_some() {
        return Err(BadHead::Length);
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // Whoever does not know the status would read on. Source: RFC 9110 §8.6, RFC 9112 §6.1.
        if chunked || length.is_some_and(|length| length > 0) {
            return Err(BadHead::Length);
        }
        headers.remove(CONTENT_LENGTH);
    }
    headers.remove(TRANSFER_ENCODING);
    let framing = match (no_body, chunked, length) {
        (true, ..) => Framing::Empty,
        (false, true, _) => Framing::Chunked,
        (false, false, Some(0)) => Framing::Empty,
        (false, false, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::Close,
    };
    // A coding that HTTP/1.0 does not have is doubtful: the connection is not used again. Source: RFC 9112 §6.1.
    let keep_alive = if is_new { !says("close") } else { says("keep-alive") && !chunked };
    Ok(ResponseHead { status, headers, framing, keep_alive: keep_alive && framing != Framing::Close })
}

/// What the client wants to speak instead of HTTP/1.1; an offer of HTTP/2 is as if it had not been made.
fn upgrade(headers: &mut HeaderMap, options: &[String]) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    if !options.iter().any(|option| option == "upgrade") {
        return None;
    }
    if protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
        headers.remove(UPGRADE);
        headers.remove("http2-settings");
        return None;
    }
    Some(protocol.clone())
}

/// Whether it has only what a host and port are written with. Source: RFC 3986 §3.2, without its user.
pub fn is_authority(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()[]*+,;=:".contains(byte))
}

/// Whether both mean one host and port: a scheme's own port need not be said.
fn same_authority(one: &[u8], other: &[u8], is_https: bool) -> bool {
    let default: &[u8] = if is_https { b":443" } else { b":80" };
    let bare = |text: &[u8]| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
    bare(one) == bare(other)
}

fn request_line(line: &[u8]) -> Result<(Method, &[u8], &[u8]), BadHead> {
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        // A request of HTTP/0.9 says no version.
        (Some(method), Some(target @ [b'/', ..]), None, _)
            if Method::from_bytes(method).is_ok() && target.iter().all(u8::is_ascii_graphic) =>
        {
            Err(BadHead::OldVersion)
        }
        (Some(method), Some(target), Some(version), None) if !target.is_empty() => {
            Ok((Method::from_bytes(method).map_err(|_| BadHead::Line)?, target, version))
        }
        _ => Err(BadHead::Line),
    }
}

struct Target<'a> {
    path: String,
    authority: Option<&'a [u8]>,
    is_https: bool,
}

fn target_of<'a>(method: &Method, target: &'a [u8]) -> Result<Target<'a>, BadHead> {
    let text = |bytes: &[u8]| {
        let good = bytes.iter().all(|byte| (0x21..=0x7e).contains(byte));
        let text = std::str::from_utf8(bytes).ok().filter(|_| good).ok_or(BadHead::Target)?;
        // A fragment is the client's own business.
        Ok(text.split('#').next().unwrap_or_default().to_owned())
    };
    if *method == Method::CONNECT {
        let target_is = std::str::from_utf8(target).ok().and_then(|text| text.parse::<Authority>().ok());
        if !is_authority(target) || target_is.is_none_or(|of| of.host().is_empty() || of.port().is_none()) {
            return Err(BadHead::Target);
        }
        return Ok(Target { path: String::new(), authority: Some(target), is_https: false });
    }
    if target.first() == Some(&b'/') {
        return Ok(Target { path: text(target)?, authority: None, is_https: false });
    }
    if target == b"*" && *method == Method::OPTIONS {
        return Ok(Target { path: "*".into(), authority: None, is_https: false });
    }
    let prefix = |scheme: &[u8]| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let (rest, is_https) = match (prefix(b"http://"), prefix(b"https://")) {
        (Some(rest), _) => (rest, false),
        (_, Some(rest)) => (rest, true),
        (None, None) => return Err(BadHead::Target),
    };
    let at = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    if authority.is_empty() || authority.contains(&b'@') {
        return Err(BadHead::Target);
    }
    let path = match path.first() {
        Some(b'/') => text(path)?,
        _ => format!("/{}", text(path)?),
    };
    Ok(Target { path, authority: Some(authority), is_https })
}

fn fields<'a>(lines: impl Iterator<Item = Result<&'a [u8], BadHead>>) -> Result<HeaderMap, BadHead> {
    let mut headers = HeaderMap::new();
    let mut count = 0;
    for line in lines {
        count += 1;
        if count > FIELDS_MAX {
            return Err(BadHead::TooLarge);
        }
        let line = line?;
        // A name ends at its colon: white space before it, or a line that goes on (obs-fold), is no name.
        let colon = line.iter().position(|byte| *byte == b':').ok_or(BadHead::Field)?;
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name).map_err(|_| BadHead::Field)?;
        let value = trim(value.get(1..).unwrap_or_default());
        headers.append(name, HeaderValue::from_bytes(value).map_err(|_| BadHead::Field)?);
    }
    Ok(headers)
}

/// The one length that is said.
fn length(headers: &HeaderMap) -> Result<Option<u64>, BadHead> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let (first, second) = (all.next(), all.next());
    let Some(value) = first else { return Ok(None) };
    let digits = value.as_bytes();
    if second.is_some() || digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadHead::Length);
    }
    let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    length.map(Some).ok_or(BadHead::Length)
}

/// Whether the one coding that may be said is.
fn chunked(headers: &HeaderMap) -> Result<bool, BadHead> {
    let mut all = headers.get_all(TRANSFER_ENCODING).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(false),
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        (Some(_), _) => Err(BadHead::Coding),
    }
}

fn request_framing(headers: &mut HeaderMap) -> Result<Framing, BadHead> {
    let length = length(headers)?;
    if length.is_some() && headers.contains_key(TRANSFER_ENCODING) {
        return Err(BadHead::Length);
    }
    if chunked(headers)? {
        headers.remove(TRANSFER_ENCODING);
        return Ok(Framing::Chunked);
    }
    Ok(length.filter(|length| *length > 0).map_or(Framing::Empty, Framing::Length))
}

/// Options of all Connection lines, in lower case.
fn options(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let options = values.flat_map(|value| value.split(',')).map(|option| option.trim().to_ascii_lowercase());
    options.filter(|option| !option.is_empty()).collect()
}

#[cfg(test)]
mod tests;
