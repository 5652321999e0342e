//! What holds for any bytes that a pod sends as a DNS query, or a name server as its answer.

use std::net::IpAddr;

use culvert_common::dns::{Answer, Code, Family, HEADER, READ_MAX, answers, ask, failure, read, told};

/// The same bytes are read as a query and as an answer.
pub(crate) fn messages(bytes: &[u8]) {
    for family in [Family::V4, Family::V6] {
        if let Some(told) = told(bytes, family) {
            assert!(told.addresses.iter().all(|ip| family.has(*ip)), "{told:?}");
        }
        let query = ask(7, "www.example.org", family).expect("a name");
        let _matched = answers(bytes, &query) | answers(&query, bytes);
    }
    let Some(query) = read(bytes) else { return };
    assert!(bytes.len() >= HEADER && bytes[2] & 0x80 == 0, "a response is no query");
    let failed = failure(&query, Code::ServFail);
    assert!(
        failed.starts_with(&bytes[..2]) && answers(&failed, bytes),
        "a failure that answers something else"
    );
    let Some(question) = query.question() else { return };
    assert!(
        question.name.len() < 255 && question.name.split('.').all(|label| (1..64).contains(&label.len()))
    );
    let ips: Vec<IpAddr> = match question.family {
        Family::V4 => (0..200).map(|last| [10, 0, 0, last].into()).collect(),
        Family::V6 => (0..200).map(|last| [0xfd00, 0, 0, 0, 0, 0, 0, last].into()).collect(),
    };
    for (addresses, limit) in
        [(ips.clone(), query.udp_limit()), (ips, READ_MAX), (Vec::new(), query.udp_limit())]
    {
        let wanted = addresses.len();
        let answer = Answer { alias: None, addresses, zone: "cluster.local".into(), serial: 1 };
        let reply = query.answered(&answer, limit).expect("an answer");
        assert!(reply.len() <= limit && answers(&reply, bytes), "{} of {limit}", reply.len());
        let said = told(&reply, question.family).expect("an answer that can be read");
        // No more than 64 are read.
        assert_eq!(said.addresses.len(), if said.is_cut { said.addresses.len() } else { wanted.min(64) });
    }
}
