//! The steps of a rule: from a [`Rule`] to expressions, from expressions to bytes and back.

use std::net::IpAddr;

use super::super::netlink::{Attr, AttrWriter, attrs, find_attr};
use super::super::rules::{Action, Family, MARK_MASK, Match, Rule};
use super::ACCEPT;

/// `NFTA_LIST_…` and `NFTA_EXPR_…`.
mod rule {
    pub(super) const ELEMENT: u16 = 1;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
}

const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const RETURN: i32 = -5;
const LOOPBACK_INDEX: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const INTERFACE_NAME_BYTES: usize = 16;

/// Keys of `meta`, `NFT_META_…`.
const META_MARK: u32 = 3;
const META_OUT_INTERFACE: u32 = 5;
const META_IN_INTERFACE_NAME: u32 = 6;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
/// Keys of `ct`, `NFT_CT_…`.
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
/// Bases of `payload`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads a property of the packet, by its key `NFT_META_…`.
    Meta(u32),
    /// Sets it.
    MetaSet(u32),
    /// Loads a property of the connection, by its key `NFT_CT_…`.
    Ct(u32),
    /// Sets it.
    CtSet(u32),
    /// Loads `length` bytes of a header.
    Payload {
        /// The header, `NFT_PAYLOAD_…`: 1 network, 2 transport.
        base: u32,
        /// Bytes from the header's start.
        offset: u32,
        /// In bytes.
        length: u32,
    },
    /// `& mask ^ xor`.
    Bitwise {
        /// As long as what was loaded; a mark in the machine's order.
        mask: Vec<u8>,
        /// As long as `mask`.
        xor: Vec<u8>,
    },
    /// Goes on when the register is equal (or, with `not`, is not).
    Cmp {
        /// True: goes on when they differ.
        not: bool,
        /// As long as what was loaded, in its byte order: headers in network order, all else in the machine's.
        value: Vec<u8>,
    },
    /// Counts packets and bytes; the counts themselves are neither written nor compared.
    Counter,
    /// Loads a constant.
    Immediate(Vec<u8>),
    /// Ends the rule with this code: `NF_ACCEPT` (1), `NFT_RETURN` (-5) or whatever else the kernel lists.
    Verdict(i32),
    /// To the port that was loaded.
    Redirect,
    /// Something this module does not write, by the kernel's name for the expression.
    Other(String),
}

/// The steps of a rule, in the order `nft` writes them.
pub fn compile(rule: &Rule) -> Vec<Expr> {
    let mut out = Vec::new();
    if let Some(family) = rule.family {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        out.extend([Expr::Meta(META_FAMILY), equal(vec![number])]);
    }
    rule.matches.iter().for_each(|matched| compile_match(matched, &mut out));
    // Before the action: what follows a verdict is not run.
    out.push(Expr::Counter);
    match rule.action {
        Action::Redirect(port) => out.extend([Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Redirect]),
        Action::Accept => out.push(Expr::Verdict(ACCEPT)),
        Action::Return => out.push(Expr::Verdict(RETURN)),
        Action::SetConnectionMark(mark) => {
            let (mask, xor) = ((!MARK_MASK).to_ne_bytes().to_vec(), mark.to_ne_bytes().to_vec());
            out.extend([Expr::Ct(CT_MARK), Expr::Bitwise { mask, xor }, Expr::CtSet(CT_MARK)]);
        }
        Action::SetZone(zone) => {
            out.extend([Expr::Immediate(zone.to_ne_bytes().to_vec()), Expr::CtSet(CT_ZONE)]);
        }
        Action::RestoreMark => out.extend([Expr::Ct(CT_MARK), Expr::MetaSet(META_MARK)]),
    }
    out
}

fn compile_match(matched: &Match, out: &mut Vec<Expr>) {
    let masked = || Expr::Bitwise { mask: MARK_MASK.to_ne_bytes().to_vec(), xor: vec![0; 4] };
    let unequal = |value| Expr::Cmp { not: true, value };
    match matched {
        Match::InInterface(name) => {
            let mut value = name.as_bytes().to_vec();
            value.resize(INTERFACE_NAME_BYTES, 0);
            out.extend([Expr::Meta(META_IN_INTERFACE_NAME), equal(value)]);
        }
        Match::OutLoopback => {
            out.extend([Expr::Meta(META_OUT_INTERFACE), equal(LOOPBACK_INDEX.to_ne_bytes().to_vec())]);
        }
        Match::NotOutLoopback => {
            out.extend([Expr::Meta(META_OUT_INTERFACE), unequal(LOOPBACK_INDEX.to_ne_bytes().to_vec())]);
        }
        Match::Source(ip) => out.extend([address(*ip, 12, 8), equal(octets(*ip))]),
        Match::Destination(ip) => out.extend([address(*ip, 16, 24), equal(octets(*ip))]),
        Match::NotDestination(ip) => out.extend([address(*ip, 16, 24), unequal(octets(*ip))]),
        Match::Tcp => out.extend([Expr::Meta(META_PROTOCOL), equal(vec![TCP])]),
        Match::Udp => out.extend([Expr::Meta(META_PROTOCOL), equal(vec![UDP])]),
        Match::SourcePort(port) => out.extend([port_at(0), equal(port.to_be_bytes().to_vec())]),
        Match::DestinationPort(port) => out.extend([port_at(2), equal(port.to_be_bytes().to_vec())]),
        Match::NotDestinationPort(port) => out.extend([port_at(2), unequal(port.to_be_bytes().to_vec())]),
        Match::Mark(mark) => {
            out.extend([Expr::Meta(META_MARK), masked(), equal(mark.to_ne_bytes().to_vec())])
        }
        Match::NotMark(mark) => {
            out.extend([Expr::Meta(META_MARK), masked(), unequal(mark.to_ne_bytes().to_vec())]);
        }
        Match::ConnectionMark(mark) => {
            out.extend([Expr::Ct(CT_MARK), masked(), equal(mark.to_ne_bytes().to_vec())]);
        }
    }
}

/// Loads a port.
fn port_at(offset: u32) -> Expr {
    Expr::Payload { base: TRANSPORT, offset, length: 2 }
}

fn equal(value: Vec<u8>) -> Expr {
    Expr::Cmp { not: false, value }
}

/// Loads an address, which the two families have at different places.
fn address(ip: IpAddr, offset_v4: u32, offset_v6: u32) -> Expr {
    match ip {
        IpAddr::V4(_) => Expr::Payload { base: NETWORK, offset: offset_v4, length: 4 },
        IpAddr::V6(_) => Expr::Payload { base: NETWORK, offset: offset_v6, length: 16 },
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Writes an expression as a list element.
pub fn encode(expr: &Expr, out: &mut AttrWriter<'_>) {
    let mut element = |name: &str, data: &dyn Fn(&mut AttrWriter<'_>)| {
        out.nest(rule::ELEMENT, |out| {
            out.put_str(rule::EXPR_NAME, name);
            out.nest(rule::EXPR_DATA, |out| data(out));
        });
    };
    let pair = |a: (u16, u32), b: (u16, u32)| {
        move |out: &mut AttrWriter<'_>| {
            out.put_be32(a.0, a.1);
            out.put_be32(b.0, b.1);
        }
    };
    match expr {
        Expr::Meta(key) => element("meta", &pair((2, *key), (1, REGISTER))),
        Expr::MetaSet(key) => element("meta", &pair((2, *key), (3, REGISTER))),
        Expr::Ct(key) => element("ct", &pair((1, REGISTER), (2, *key))),
        Expr::CtSet(key) => element("ct", &pair((2, *key), (4, REGISTER))),
        Expr::Payload { base, offset, length } => element("payload", &|out| {
            pair((1, REGISTER), (2, *base))(out);
            pair((3, *offset), (4, *length))(out);
        }),
        Expr::Bitwise { mask, xor } => element("bitwise", &|out| {
            pair((1, REGISTER), (2, REGISTER))(out);
            out.put_be32(3, u32::try_from(mask.len()).unwrap_or(0));
            // The operation, 0: mask and xor.
            out.put_be32(6, 0);
            out.nest(4, |out| out.put(1, mask));
            out.nest(5, |out| out.put(1, xor));
        }),
        Expr::Cmp { not, value } => element("cmp", &|out| {
            pair((1, REGISTER), (2, u32::from(*not)))(out);
            out.nest(3, |out| out.put(1, value));
        }),
        Expr::Counter => element("counter", &|_| {}),
        Expr::Immediate(value) => element("immediate", &|out| {
            out.put_be32(1, REGISTER);
            out.nest(2, |out| out.put(1, value));
        }),
        Expr::Verdict(code) => element("immediate", &|out| {
            out.put_be32(1, VERDICT_REGISTER);
            out.nest(2, |out| out.nest(2, |out| out.put_be32(1, code.cast_unsigned())));
        }),
        Expr::Redirect => element("redir", &|out| {
            pair((1, REGISTER), (2, REGISTER))(out);
            // NF_NAT_RANGE_PROTO_SPECIFIED: the kernel sets it itself when a port is given, and lists it.
            out.put_be32(3, 2);
        }),
        Expr::Other(name) => element(name, &|_| {}),
    }
}

/// Reads the content of a list element.
pub fn decode(element: &[u8]) -> Expr {
    let name = find_attr(element, rule::EXPR_NAME).map(|attr| attr.text()).unwrap_or_default();
    let data = find_attr(element, rule::EXPR_DATA).map(|attr| attr.value).unwrap_or_default();
    let known = attrs(data).collect::<Result<Vec<_>, _>>().ok().and_then(|attrs| {
        let fields = Fields(attrs);
        match name {
            "meta" => fields.meta(),
            "ct" => fields.ct(),
            "payload" => fields.payload(),
            "bitwise" => fields.bitwise(),
            "cmp" => fields.cmp(),
            // What it has counted is not compared.
            "counter" => Some(Expr::Counter),
            "immediate" => fields.immediate(),
            "redir" => fields.redirect(),
            _ => None,
        }
    });
    known.unwrap_or_else(|| Expr::Other(name.to_owned()))
}

struct Fields<'a>(Vec<Attr<'a>>);

impl Fields<'_> {
    fn number(&self, kind: u16) -> Option<u32> {
        self.0.iter().find(|attr| attr.kind == kind)?.be32()
    }

    fn is(&self, kind: u16, wanted: u32) -> Option<()> {
        (self.number(kind)? == wanted).then_some(())
    }

    /// The bytes nested as `NFTA_DATA_VALUE`.
    fn data(&self, kind: u16) -> Option<Vec<u8>> {
        Some(find_attr(self.0.iter().find(|attr| attr.kind == kind)?.value, 1)?.value.to_vec())
    }

    fn only(&self, kinds: &[u16]) -> Option<()> {
        self.0.iter().all(|attr| kinds.contains(&attr.kind)).then_some(())
    }

    fn meta(&self) -> Option<Expr> {
        let key = self.number(2)?;
        match self.only(&[1, 2]) {
            Some(()) => self.is(1, REGISTER).map(|()| Expr::Meta(key)),
            None => self.only(&[2, 3]).and(self.is(3, REGISTER)).map(|()| Expr::MetaSet(key)),
        }
    }

    fn ct(&self) -> Option<Expr> {
        let key = self.number(2)?;
        match self.only(&[1, 2]) {
            Some(()) => self.is(1, REGISTER).map(|()| Expr::Ct(key)),
            None => self.only(&[2, 4]).and(self.is(4, REGISTER)).map(|()| Expr::CtSet(key)),
        }
    }

    fn payload(&self) -> Option<Expr> {
        self.only(&[1, 2, 3, 4]).and(self.is(1, REGISTER))?;
        Some(Expr::Payload { base: self.number(2)?, offset: self.number(3)?, length: self.number(4)? })
    }

    fn bitwise(&self) -> Option<Expr> {
        self.only(&[1, 2, 3, 4, 5, 6]).and(self.is(1, REGISTER)).and(self.is(2, REGISTER))?;
        // Kernels before 5.6 know one operation and do not list it.
        if self.number(6).is_some_and(|operation| operation != 0) {
            return None;
        }
        let (mask, xor) = (self.data(4)?, self.data(5)?);
        self.is(3, u32::try_from(mask.len()).ok()?)?;
        Some(Expr::Bitwise { mask, xor })
    }

    fn cmp(&self) -> Option<Expr> {
        self.only(&[1, 2, 3]).and(self.is(1, REGISTER))?;
        let not = match self.number(2)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Expr::Cmp { not, value: self.data(3)? })
    }

    fn immediate(&self) -> Option<Expr> {
        self.only(&[1, 2])?;
        if self.number(1)? == REGISTER {
            return Some(Expr::Immediate(self.data(2)?));
        }
        self.is(1, VERDICT_REGISTER)?;
        let verdict = find_attr(self.0.iter().find(|attr| attr.kind == 2)?.value, 2)?;
        // A jump also names its chain, and is nothing we write.
        let only_code = attrs(verdict.value).all(|attr| attr.is_ok_and(|attr| attr.kind == 1));
        let code = find_attr(verdict.value, 1)?.be32()?;
        only_code.then_some(Expr::Verdict(code.cast_signed()))
    }

    fn redirect(&self) -> Option<Expr> {
        self.only(&[1, 2, 3]).and(self.is(1, REGISTER)).and(self.is(2, REGISTER)).and(self.is(3, 2))?;
        Some(Expr::Redirect)
    }
}
