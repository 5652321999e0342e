//! The laws of the fuzz targets, on the corpus and on seeded mutations of it: what the stable compiler can run.

use std::path::Path;

use culvert_tests::dice::Dice;

#[path = "../fuzz/laws/ca_answer.rs"]
mod ca_answer;
#[path = "../fuzz/laws/chunks.rs"]
mod chunks;
#[path = "../fuzz/laws/client_hello.rs"]
mod client_hello;
#[path = "../fuzz/laws/crl.rs"]
mod crl;
#[path = "../fuzz/laws/discovery.rs"]
mod discovery;
#[path = "../fuzz/laws/dns.rs"]
mod dns;
#[path = "../fuzz/laws/grpc_timeout.rs"]
mod grpc_timeout;
#[path = "../fuzz/laws/guard.rs"]
mod guard;
#[path = "../fuzz/laws/heads.rs"]
mod heads;
#[path = "../fuzz/laws/netlink.rs"]
mod netlink;
#[path = "../fuzz/laws/request.rs"]
mod request;
#[path = "../fuzz/laws/request_head.rs"]
mod request_head;
#[path = "../fuzz/laws/response_head.rs"]
mod response_head;
#[path = "../fuzz/laws/zds.rs"]
mod zds;

/// Mutations of each file of a corpus.
const MUTATIONS: usize = 400;

/// A few changes: a byte, a bit, a piece taken out, doubled, or taken from another file.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len());
        let end = (at + dice.roll(12)).min(bytes.len());
        match dice.roll(6) {
            0 => bytes.insert(at, dice.byte()),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => {
                let from = dice.roll(other.len());
                let to = (from + dice.roll(40)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ if bytes.is_empty() => {}
            4 => bytes[at] ^= 1 << dice.roll(8),
            _ => bytes[at] = dice.byte(),
        }
    }
}

/// Runs `law` on the corpus of a target and on mutations; a failure prints the bytes.
fn run(target: &str, law: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).expect("a corpus").map(|e| e.expect("an entry").path()).collect();
    names.sort();
    let files: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(name).expect("a file")).collect();
    assert!(!files.is_empty(), "{target} has no corpus");
    let mut dice = Dice::new(0x5eed_0005);
    for (number, file) in files.iter().enumerate() {
        law(file);
        for _ in 0..MUTATIONS {
            let mut bytes = file.clone();
            mutate(&mut dice, &mut bytes, &files[(number + 1) % files.len()]);
            if std::panic::catch_unwind(|| law(&bytes)).is_err() {
                panic!("{target}: {bytes:?}");
            }
        }
    }
}

#[test]
fn frames_of_a_peer() {
    run("guard", guard::frames);
}

#[test]
fn header_blocks_of_a_peer() {
    run("hpack", guard::headers);
}

#[test]
fn messages_of_the_other_process() {
    run("zds", zds::messages);
}

#[test]
fn answers_of_the_kernel() {
    run("netlink", netlink::answers);
}

#[test]
fn answers_of_a_discovery_server() {
    run("discovery", discovery::responses);
}

#[test]
fn dns_messages() {
    run("dns", dns::messages);
}

#[test]
fn answers_of_a_certificate_authority() {
    run("ca_answer", ca_answer::answers);
}

#[test]
fn files_of_revocation_lists() {
    run("crl", crl::lists);
}

#[test]
fn heads_of_requests() {
    run("request", request::head);
}

#[test]
fn heads_of_requests_in_http1() {
    run("request_head", request_head::request);
}

#[test]
fn heads_of_answers_in_http1() {
    run("response_head", response_head::response);
}

#[test]
fn chunks_and_trailers() {
    run("chunks", chunks::chunks);
}

#[test]
fn first_messages_of_tls_clients() {
    run("client_hello", client_hello::hello);
}

#[test]
fn timeouts_of_grpc() {
    run("grpc_timeout", grpc_timeout::grpc_timeout);
}
