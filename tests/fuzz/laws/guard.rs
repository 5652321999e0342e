//! What holds for any bytes of a peer: the frame filter before the HTTP/2 codec, and its HPACK decoder.

use culvert_common::hbone::guard::filtered;
use culvert_common::hbone::guard::hpack::Decoder;
use culvert_common::telemetry::Side;
use http::Request;
use tokio::io::AsyncWriteExt as _;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// What [`filtered`] announces.
const LIST: usize = 16 * 1024;

/// Frames: however they are cut, the codec sees the same, and what it sees is accepted again as it is.
pub(crate) fn frames(bytes: &[u8]) {
    let [how, size, rest @ ..] = bytes else { return };
    let side = if how & 1 == 0 { Side::Server } else { Side::Client };
    let preface = if side == Side::Server { PREFACE } else { &[] };
    let all = match how & 2 {
        0 => [preface, SETTINGS, rest].concat(),
        _ => rest.to_vec(),
    };
    let (whole, ended) = filtered(side, &all, all.len());
    let (cut, ended_cut) = filtered(side, &all, usize::from(*size));
    assert_eq!(ended, ended_cut);
    if ended.is_none() {
        assert_eq!(whole, cut);
    }
    let (again, ended) = filtered(side, &cut, 64);
    assert_eq!((again, ended), (cut, None));
}

/// A header block: the limit holds, and of what the codec takes for a request it sees the fields that were sent.
pub(crate) fn headers(block: &[u8]) {
    let block = block.get(..LIST).unwrap_or(block);
    let (mut fields, mut size) = (Vec::new(), 0);
    let decoded = Decoder::new(4096).decode(block, LIST, |name, value| {
        size += name.len() + value.len() + 32;
        fields.push((name.to_vec(), value.to_vec()));
    });
    assert!(size <= LIST);
    let [_, length @ ..] = u32::try_from(block.len()).expect("at most 16 KiB").to_be_bytes();
    let head = [&length[..], &[1, 4 | 1, 0, 0, 0, 1]].concat();
    let all = [PREFACE, SETTINGS, &head, block].concat();
    let (seen, ended) = filtered(Side::Server, &all, 100);
    assert_eq!(decoded.is_err(), ended.is_some());
    let Some(request) = request(&seen) else { return };
    assert_eq!(decoded, Ok(false), "a request of what is over the limit");
    assert_eq!(regular(&request), sorted(fields), "other fields than were sent");
    // Without the filter the codec takes the same request for the same, or refuses a length that means nothing.
    if let Some(unfiltered) = self::request(&all) {
        assert_eq!(unfiltered.uri(), request.uri());
        assert_eq!(unfiltered.method(), request.method());
        assert_eq!(regular(&unfiltered), regular(&request));
    }
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn sorted(mut fields: Fields) -> Fields {
    fields.retain(|(name, _)| name.first() != Some(&b':') && name != b"content-length");
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn regular(request: &Request<()>) -> Fields {
    sorted(request.headers().iter().map(|(n, v)| (n.as_str().into(), v.as_bytes().into())).collect())
}

/// The request that the codec finds in the bytes of a client.
fn request(bytes: &[u8]) -> Option<Request<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(bytes).await.expect("room");
        far.shutdown().await.expect("an open pipe");
        let mut server = h2::server::Builder::new();
        server.max_header_list_size(u32::try_from(LIST).expect("small"));
        let mut connection = server.handshake::<_, bytes::Bytes>(near).await.ok()?;
        let (request, _respond) = connection.accept().await?.ok()?;
        Some(request.map(|_body| ()))
    })
}
