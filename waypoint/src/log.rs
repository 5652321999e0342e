//! The one line that is written of a request. Source: Envoy, default format of access logs.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Method};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::message::Request;
use crate::request::Told;
use crate::serve::Stage;

/// What of a request is told, as the client sent it.
pub(crate) struct Line {
    method: Method,
    path: String,
    protocol: &'static str,
    authority: HeaderValue,
    forwarded_for: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Line {
    pub(crate) fn of(request: &Request) -> Self {
        let header = |name: HeaderName| request.headers.get(name).cloned();
        Self {
            method: request.method.clone(),
            path: request.path.clone(),
            protocol: request.version.as_str(),
            authority: request.authority.clone(),
            forwarded_for: header(FORWARDED_FOR),
            user_agent: header(http::header::USER_AGENT),
            request_id: header(REQUEST_ID),
        }
    }

    /// Writes it; `sent` has the headers as they went on, with the id that was made.
    pub(crate) fn write(&self, stage: &Stage, told: &Told) {
        if !tracing::enabled!(target: "access", tracing::Level::INFO) {
            return;
        }
        let mut line = String::with_capacity(256);
        // Writing to a text does not fail.
        let _written = self.fill(&mut line, stage, told);
        tracing::info!(target: "access", "{line}");
    }

    fn fill(&self, line: &mut String, stage: &Stage, told: &Told) -> fmt::Result {
        let quoted =
            |value: &Option<HeaderValue>| Shown(value.as_ref().map(HeaderValue::as_bytes)).to_string();
        let address =
            |address: Option<SocketAddr>| address.map_or("-".to_owned(), |address| address.to_string());
        write!(
            line,
            "[{}] \"{} {} {}\" ",
            started(told.started),
            self.method,
            Shown(Some(self.path.as_bytes())),
            self.protocol
        )?;
        let status = told.status.map_or(0, |status| status.as_u16());
        let details = if told.details.is_empty() { "-" } else { &told.details };
        write!(line, "{status} {} {details} - \"{}\" ", told.flags, Shown(text(&told.transport)))?;
        let took = told.began.elapsed().as_millis();
        write!(line, "{} {} {took} ", told.received, told.sent)?;
        match told.upstream_time {
            Some(time) => write!(line, "{} ", time.as_millis())?,
            None => line.push_str("- "),
        }
        write!(line, "\"{}\" \"{}\" ", quoted(&self.forwarded_for), quoted(&self.user_agent))?;
        write!(line, "\"{}\" \"{}\" ", quoted(&self.request_id), Shown(Some(self.authority.as_bytes())))?;
        write!(line, "\"{}\" ", address(told.endpoint.as_ref().map(|endpoint| endpoint.address)))?;
        match &told.cluster {
            Some(key) => write!(line, "{key} ")?,
            None => line.push_str("- "),
        }
        write!(line, "- {} {} - ", stage.destination, stage.client.address)?;
        line.push_str(told.route.as_deref().filter(|name| !name.is_empty()).unwrap_or("-"));
        Ok(())
    }
}

fn text(text: &str) -> Option<&[u8]> {
    Some(text.as_bytes()).filter(|text| !text.is_empty())
}

fn started(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

/// A text that a stranger chose, without anything that ends a field or a line; `-` for none.
struct Shown<'a>(Option<&'a [u8]>);

/// Longest text that is shown.
const SHOWN: usize = 1024;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("-") };
        for byte in text.iter().take(SHOWN) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                0x20..=0x7e => f.write_char(char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_chose_stays_in_its_field() {
        assert_eq!(Shown(Some(b"a\"b\\c\n\xff")).to_string(), "a\\\"b\\\\c\\x0a\\xff");
        assert_eq!(Shown(None).to_string(), "-");
    }
}
