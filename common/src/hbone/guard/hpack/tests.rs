use super::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<String, NotHpack> {
    let mut lines = Vec::new();
    decoder.decode(block, usize::MAX, |name, value| {
        lines.push(format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
    })?;
    Ok(lines.join("\n"))
}

/// Blocks of one connection after the other, and the table's size behind each.
fn check(ceiling: usize, blocks: &[(&str, &str, usize)]) {
    let mut decoder = Decoder::new(ceiling);
    for (block, expected, size) in blocks {
        assert_eq!(fields(&mut decoder, &hex(block)).as_deref(), Ok(*expected), "{block}");
        assert_eq!(decoder.size, *size, "{block}");
    }
}

#[test]
fn examples_of_single_fields() {
    // RFC 7541 appendix C.2.
    check(
        4096,
        &[(
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            "custom-key: custom-header",
            55,
        )],
    );
    check(4096, &[("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", 0)]);
    check(4096, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", 0)]);
    check(4096, &[("82", ":method: GET", 0)]);
}

const REQUESTS: [&str; 3] = [
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
];

#[test]
fn examples_of_requests() {
    // RFC 7541 appendix C.3 and C.4.
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, coded] {
        let [a, b, c] = blocks;
        check(4096, &[(a, REQUESTS[0], 57), (b, REQUESTS[1], 110), (c, REQUESTS[2], 164)]);
    }
}

#[test]
fn examples_of_answers_with_eviction() {
    // RFC 7541 appendix C.5 and C.6.
    let date = "date: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com";
    let first = format!(":status: 302\ncache-control: private\n{date}");
    let second = format!(":status: 307\ncache-control: private\n{date}");
    let third = ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\n\
        content-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e \
         1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d \
         4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 \
         7369 6f6e 3d31",
    ];
    let coded = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b \
         97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf \
         cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    for [a, b, c] in [plain, coded] {
        check(256, &[(a, &first, 222), (b, &second, 222), (c, third, 215)]);
    }
}

#[test]
fn what_is_no_hpack_is_refused() {
    for block in [
        "80",                      // index 0
        "be",                      // an entry that is not there
        "ff ff ff ff ff 0f",       // an integer of more than 28 bits
        "7f",                      // an integer that does not end
        "40",                      // a name that is not there
        "40 05 61",                // shorter than it says
        "40 81 ff 00",             // Huffman code of nothing
        "82 20",                   // a change of the table behind a field
        "3f e2 1f",                // a table of 4,097 bytes
        "00 01 61 84 ff ff ff ff", // EOS
    ] {
        assert_eq!(fields(&mut Decoder::new(4096), &hex(block)), Err(NotHpack), "{block}");
    }
    assert_eq!(fields(&mut Decoder::new(4096), &hex("3f e1 1f 20 82")).as_deref(), Ok(":method: GET"));
}

#[test]
fn a_smaller_table_forgets() {
    let mut decoder = Decoder::new(4096);
    fields(&mut decoder, &hex("4001 6101 62")).unwrap();
    assert_eq!(fields(&mut decoder, &hex("be")).as_deref(), Ok("a: b"));
    assert_eq!(fields(&mut decoder, &hex("20 be")), Err(NotHpack));
    assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
}

#[test]
fn past_the_limit_the_table_stays_right_and_nothing_is_materialised() {
    let mut decoder = Decoder::new(4096);
    let mut block = Vec::new();
    block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]); // 4,000 bytes
    block.extend([b'v'; 4000]);
    block.extend([0xbe; 60_000]);
    block.extend(hex("0001 6101 62 4001 6301 64"));
    let (mut taken, mut bytes) = (0, 0);
    let over = decoder.decode(&block, 16 * 1024, |name, value| {
        taken += 1;
        bytes += name.len() + value.len();
    });
    assert_eq!((over, taken), (Ok(true), 4));
    assert!(bytes <= 16 * 1024);
    assert_eq!(fields(&mut decoder, &hex("be")).as_deref(), Ok("c: d"), "in step with the peer");
}

proptest! {
    /// Any fields come back as they were, whatever the lengths.
    #[test]
    fn fields_come_back(fields in proptest::collection::vec(
        (proptest::collection::vec(any::<u8>(), 0..300), proptest::collection::vec(any::<u8>(), 0..300)), 0..20)) {
        let mut block = Vec::new();
        for (name, value) in &fields {
            encode(&mut block, name, value);
        }
        let mut back = Vec::new();
        let over = Decoder::new(4096).decode(&block, usize::MAX, |n, v| back.push((n.to_vec(), v.to_vec())));
        prop_assert_eq!(over, Ok(false));
        prop_assert_eq!(back, fields);
    }

    /// Any bytes are decoded or refused; the table stays within what was announced, the fields within the limit.
    #[test]
    fn any_bytes_are_decoded_or_refused(
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..8),
        ceiling in 0_usize..300, limit in 0_usize..600) {
        let mut decoder = Decoder::new(ceiling);
        for block in blocks {
            let mut bytes = 0;
            let done = decoder.decode(&block, limit, |n, v| bytes += n.len() + v.len() + OVERHEAD);
            prop_assert!(bytes <= limit);
            prop_assert!(decoder.size <= decoder.max && decoder.max <= ceiling);
            prop_assert_eq!(decoder.size, decoder.entries.iter().map(Entry::size).sum::<usize>());
            if done.is_err() {
                break;
            }
        }
    }
}
