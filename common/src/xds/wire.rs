//! A response of the discovery server, read piece by piece.
//!
//! A message of a few bytes per item grows a hundredfold when it is decoded as a whole. So the message stays as it came,
//! and one resource at a time is decoded, each of bounded size. Pure.

use bytes::Bytes;
use prost::Message;
use prost::encoding::decode_varint;

use super::proto::discovery::Resource;
use super::translate::Unusable;

/// Largest resource that is decoded. Kubernetes stores no larger objects.
const RESOURCE_MAX: usize = 1 << 20;
/// Longest type URL, nonce or name that is taken.
const TEXT_MAX: usize = 4096;

const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED: u32 = 6;
/// Name of a [`Resource`].
const NAME: u32 = 3;

/// A message that is no discovery response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; does the address lead to a discovery server?")]
pub struct Garbage(&'static str);

/// A response whose outline has been read.
#[derive(Clone, Debug)]
pub struct Response {
    bytes: Bytes,
    /// Type of all its resources.
    pub type_url: String,
    /// To be said in the answer.
    pub nonce: String,
}

impl Response {
    /// Reads the outline.
    ///
    /// **Errors**: it is no protobuf message, or has texts of absurd length.
    pub fn read(bytes: Bytes) -> Result<Self, Garbage> {
        let (mut type_url, mut nonce) = (String::new(), String::new());
        for field in Fields(&bytes) {
            match field? {
                (TYPE_URL, value) => type_url = text(value)?.to_owned(),
                (NONCE, value) => nonce = text(value)?.to_owned(),
                (REMOVED, value) => drop(text(value)?),
                _ => {}
            }
        }
        Ok(Self { bytes, type_url, nonce })
    }

    /// Its size on the wire.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Names of what is gone.
    pub fn removed(&self) -> impl Iterator<Item = &str> {
        self.fields(REMOVED).filter_map(|value| text(value).ok())
    }

    /// What is there. The error has the resource's name.
    pub fn resources(&self) -> impl Iterator<Item = Result<Resource, (String, Unusable)>> {
        self.fields(RESOURCES).map(|value| self.resource(value))
    }

    fn resource(&self, value: &[u8]) -> Result<Resource, (String, Unusable)> {
        let name = || {
            let names = Fields(value).filter_map(Result::ok).filter(|(tag, _)| *tag == NAME);
            names.last().and_then(|(_, name)| text(name).ok()).unwrap_or("(without a name)").to_owned()
        };
        if value.len() > RESOURCE_MAX {
            return Err((name(), Unusable::TooLarge { size: value.len(), limit: RESOURCE_MAX }));
        }
        // A piece of the same memory: the body of the resource is not copied.
        Resource::decode(self.bytes.slice_ref(value))
            .map_err(|error| (name(), Unusable::Undecodable(error.to_string())))
    }

    fn fields(&self, wanted: u32) -> impl Iterator<Item = &[u8]> {
        let all = Fields(&self.bytes).filter_map(Result::ok);
        all.filter(move |(tag, _)| *tag == wanted).map(|(_, value)| value)
    }
}

fn text(value: &[u8]) -> Result<&str, Garbage> {
    if value.len() > TEXT_MAX {
        return Err(Garbage("it has a name of more than 4 KiB"));
    }
    std::str::from_utf8(value).map_err(|_| Garbage("it has a name that is no UTF-8"))
}

/// Numbers and values of the fields that have a length; others are skipped. Ends after an error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, &'a [u8]), Garbage>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            match self.advance() {
                Some(Some(field)) => return Some(Ok(field)),
                Some(None) => {}
                None => {
                    self.0 = &[];
                    return Some(Err(Garbage("it is no protobuf message")));
                }
            }
        }
        None
    }
}

impl<'a> Fields<'a> {
    fn advance(&mut self) -> Option<Option<(u32, &'a [u8])>> {
        let key = decode_varint(&mut self.0).ok()?;
        let tag = u32::try_from(key >> 3).ok()?;
        match key & 7 {
            0 => {
                decode_varint(&mut self.0).ok()?;
                Some(None)
            }
            1 => self.take(8).map(|_| None),
            2 => {
                let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                self.take(length).map(|value| Some((tag, value)))
            }
            5 => self.take(4).map(|_| None),
            _ => None,
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::proto::discovery::DeltaDiscoveryResponse;

    #[test]
    fn a_response_is_read_as_protobuf_has_it() {
        let resource =
            |name: &str| Resource { name: name.into(), version: "1".into(), ..Resource::default() };
        let sent = DeltaDiscoveryResponse {
            resources: vec![resource("a"), resource("b")],
            type_url: "type".into(),
            nonce: "n1".into(),
            removed_resources: vec!["c".into(), "d".into()],
        };
        let response = Response::read(sent.encode_to_vec().into()).unwrap();
        assert_eq!((&*response.type_url, &*response.nonce), ("type", "n1"));
        assert_eq!(response.removed().collect::<Vec<_>>(), ["c", "d"]);
        let resources: Vec<_> = response.resources().map(Result::unwrap).collect();
        assert_eq!(resources, sent.resources);
    }

    #[test]
    fn what_is_no_response_is_refused_and_a_bad_resource_is_named() {
        for bad in [&b"\xff"[..], b"\x12\x05ab", b"\x13", b"\x32\x01\xff", b"\x20"] {
            assert!(Response::read(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
        let long = [&[0x2a, 0x81, 0x40][..], &[b'x'; 8193]].concat();
        assert!(Response::read(long.into()).is_err(), "a nonce of 8 KiB");
        // A resource named "a" whose version has a length beyond its end.
        let response = Response::read(Bytes::from_static(b"\x12\x06\x1a\x01a\x0a\x09x")).unwrap();
        let errors: Vec<_> = response.resources().map(|one| one.unwrap_err().0).collect();
        assert_eq!(errors, ["a"]);
        let huge = Resource { name: "huge".into(), version: "x".repeat(RESOURCE_MAX), ..Resource::default() };
        let sent = DeltaDiscoveryResponse { resources: vec![huge], ..DeltaDiscoveryResponse::default() };
        let response = Response::read(sent.encode_to_vec().into()).unwrap();
        let error = response.resources().next().unwrap().unwrap_err();
        assert_eq!(error.0, "huge");
        assert!(matches!(error.1, Unusable::TooLarge { .. }));
    }
}
