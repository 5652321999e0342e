use super::*;
use proptest::prelude::*;

/// A tree of attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tree {
    Leaf(u16, Vec<u8>),
    Node(u16, Vec<Tree>),
}

fn write(out: &mut AttrWriter<'_>, trees: &[Tree]) {
    for tree in trees {
        match tree {
            Tree::Leaf(kind, value) => out.put(*kind, value),
            Tree::Node(kind, inner) => out.nest(*kind, |out| write(out, inner)),
        }
    }
}

/// Reads back with the shape of `like`, as attributes do not say whether they hold others.
fn read(bytes: &[u8], like: &[Tree]) -> Vec<Tree> {
    let found: Vec<Attr<'_>> = attrs(bytes).collect::<Result<_, _>>().unwrap();
    assert_eq!(found.len(), like.len());
    found
        .iter()
        .zip(like)
        .map(|(attr, like)| match like {
            Tree::Leaf(..) => Tree::Leaf(attr.kind, attr.value.to_vec()),
            Tree::Node(_, inner) => Tree::Node(attr.kind, read(attr.value, inner)),
        })
        .collect()
}

fn trees() -> impl Strategy<Value = Vec<Tree>> {
    let leaf = (0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(k, v)| Tree::Leaf(k, v));
    let tree = leaf.prop_recursive(3, 24, 5, |inner| {
        (0u16..0x3fff, prop::collection::vec(inner, 0..5)).prop_map(|(k, v)| Tree::Node(k, v))
    });
    prop::collection::vec(tree, 0..6)
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        messages in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u32>(), trees()), 1..4),
    ) {
        let mut writer = Writer::default();
        for (kind, flags, seq, trees) in &messages {
            let header = Header { kind: *kind, flags: *flags, seq: *seq };
            writer.message(header, &[7, 7, 7, 7], |out| write(out, trees));
        }
        let frames: Vec<Frame<'_>> = frames(writer.bytes()).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(frames.len(), messages.len());
        for (frame, (kind, flags, seq, trees)) in frames.iter().zip(&messages) {
            prop_assert_eq!(frame.header, Header { kind: *kind, flags: *flags, seq: *seq });
            prop_assert_eq!(&frame.body[..4], &[7, 7, 7, 7]);
            prop_assert_eq!(&read(&frame.body[4..], trees), trees);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for frame in frames(&bytes) {
            let Ok(frame) = frame else { break };
            let _: Vec<_> = attrs(frame.body).collect();
            let _ = refusal(&frame);
        }
        let _ = explanation(&bytes);
        prop_assert!(attrs(&bytes).count() <= bytes.len() / 4 + 1);
        for flags in [0, CAPPED, ACK_HAS_ATTRIBUTES, CAPPED | ACK_HAS_ATTRIBUTES] {
            let _ = refusal(&Frame { header: Header { kind: KIND_ERROR, flags, seq: 0 }, body: &bytes });
        }
    }

    #[test]
    fn a_cut_message_is_malformed(trees in trees(), cut in 1usize..16) {
        let mut writer = Writer::default();
        writer.message(Header { kind: 1, flags: 0, seq: 0 }, &[], |out| write(out, &trees));
        let bytes = writer.bytes();
        let short = &bytes[..bytes.len() - cut.min(bytes.len() - 1)];
        prop_assert!(frames(short).last().unwrap().is_err());
    }
}

#[test]
fn a_refusal_carries_the_kernels_words() {
    for (flags, request) in [(ACK_HAS_ATTRIBUTES | CAPPED, 16), (ACK_HAS_ATTRIBUTES, 24)] {
        let mut body = (-libc::EEXIST).to_ne_bytes().to_vec();
        body.extend_from_slice(&u32::to_ne_bytes(24));
        body.resize(4 + request, 0);
        AttrWriter(&mut body).put_str(ACK_TEXT, "rule already exists");
        let frame = Frame { header: Header { kind: KIND_ERROR, flags, seq: 1 }, body: &body };
        let error = refusal(&frame).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        assert!(error.to_string().ends_with(": rule already exists"), "{error}");
    }
}

#[test]
fn an_attribute_too_long_for_its_length_is_left_out() {
    let mut writer = Writer::default();
    writer.message(Header { kind: 1, flags: 0, seq: 0 }, &[], |out| {
        out.put(1, &[0; 70_000]);
        out.nest(2, |out| (0..3).for_each(|_| out.put(3, &[0; 30_000])));
        out.put_u32(4, 9);
    });
    let frame = frames(writer.bytes()).next().unwrap().unwrap();
    let kinds: Vec<u16> = attrs(frame.body).map(|attr| attr.unwrap().kind).collect();
    assert_eq!(kinds, [4]);
}

#[test]
fn the_kernel_answers_and_refuses() {
    let mut route = Netlink::route().unwrap();
    let links = route.dump(18, &[0; 16], |_| {}).unwrap();
    assert!(!links.is_empty());
    // Link number -1.
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(matches!(route.get(18, &head), Err(NetlinkError::Kernel { .. })));
}
