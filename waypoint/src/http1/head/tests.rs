use super::*;

fn of(text: &str) -> Result<RequestHead, BadHead> {
    let length = End::default().find(text.as_bytes(), REQUEST_MAX)?.expect("a whole head");
    request(&text.as_bytes()[..length])
}

fn status_of(bad: BadHead) -> u16 {
    match bad {
        BadHead::Coding => 501,
        BadHead::OldVersion => 426,
        BadHead::Version => 505,
        BadHead::TooLarge => 431,
        BadHead::Line
        | BadHead::Field
        | BadHead::Target
        | BadHead::Host
        | BadHead::Authority
        | BadHead::Length
        | BadHead::Upgrade => 400,
    }
}

#[test]
fn a_request_is_read() {
    let head =
        of("POST /a?b=c#d HTTP/1.1\r\nHost: Shop:80\r\nX-A:  1 \r\nx-a: 2\r\nContent-Length: 3\r\n\r\nabc")
            .unwrap();
    assert_eq!((head.method, head.path.as_str()), (Method::POST, "/a?b=c"));
    assert_eq!(head.authority, "Shop:80");
    assert_eq!(head.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((head.framing, head.keep_alive, head.upgrade), (Framing::Length(3), true, None));
    let head = of(
        "GET HTTP://shop?x HTTP/1.1\r\nHost: SHOP\r\nConnection: Close, Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let head = head.unwrap();
    assert_eq!((head.path.as_str(), head.keep_alive), ("/?x", false));
    assert_eq!(head.upgrade.unwrap(), "websocket");
}

#[test]
fn an_offer_of_http2_is_not_heard() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\n\
                HTTP2-Settings: AAMAAABk\r\n\r\n";
    let head = of(text).unwrap();
    assert_eq!((head.upgrade, head.keep_alive), (None, true));
    assert!(!head.headers.contains_key("http2-settings") && !head.headers.contains_key("upgrade"));
    let head = of("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(head.upgrade, None, "not without Connection");
}

#[test]
fn the_port_of_a_scheme_need_not_be_said() {
    for (target, host, authority) in [
        ("http://a:80/x", "a", Some("a:80")),
        ("http://A/x", "a:80", Some("A")),
        ("https://a:443/x", "a", Some("a:443")),
        ("https://a:80/x", "a", None),
        ("http://a:81/x", "a", None),
    ] {
        let head = of(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(head.ok().map(|head| head.authority), authority.map(HeaderValue::from_static), "{target}");
    }
}

#[test]
fn nothing_is_read_behind_a_connect() {
    let head = of("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").unwrap();
    assert_eq!((head.path.as_str(), head.keep_alive), ("", false));
    let head = of("CONNECT a:1 HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
    assert_eq!(head.authority, "a:1", "whatever the Host says");
}

/// What two parsers could read differently, and what nobody should send.
#[test]
fn what_is_doubtful_is_refused() {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\n{rest}\r\n");
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let table = [
        (line("GET /  HTTP/1.1"), 400),
        (line("GET  / HTTP/1.1"), 400),
        (line("GET\t/ HTTP/1.1"), 400),
        (line("GET / HTTP/1.1 "), 400),
        (line(" GET / HTTP/1.1"), 400),
        (line("GET /"), 426),
        (line("GET / http/1.1"), 400),
        (line("CONNECT / HTTP/1.1"), 400),
        (line("CONNECT * HTTP/1.1"), 400),
        (line("CONNECT a HTTP/1.1"), 400),
        (line("CONNECT :80 HTTP/1.1"), 400),
        (line("CONNECT http://a/ HTTP/1.1"), 400),
        (line("G(T / HTTP/1.1"), 400),
        (line("GET a HTTP/1.1"), 400),
        (line("GET ?x HTTP/1.1"), 400),
        (line("GET * HTTP/1.1"), 400),
        (line("GET ftp://a/ HTTP/1.1"), 400),
        (line("GET http://b/ HTTP/1.1"), 400),
        (line("GET http:///x HTTP/1.1"), 400),
        (line("GET http://u@a/ HTTP/1.1"), 400),
        (line("GET /\u{e9} HTTP/1.1"), 400),
        (line("GET / HTTP/1.0"), 426),
        (line("GET / HTTP/1.2"), 505),
        (line("GET / HTTP/2.0"), 505),
        (get(""), 400),
        (get("Host: a\r\nHost: a\r\n"), 400),
        (get("Host: a b\r\n"), 400),
        (get("Host: a/b\r\n"), 400),
        (get("Host: a\r\nConnection: host\r\n"), 400),
        (get("Host: a\nX: b\r\n"), 400),
        (get("Host: a\r\n X: b\r\n"), 400),
        (get("Host: a\r\nX : b\r\n"), 400),
        (get("Host: a\r\nX: b\rc\r\n"), 400),
        (get("Host: a\r\nX: b\0c\r\n"), 400),
        (get("Host: a\r\nX\r\n"), 400),
        (get("Host: a\r\n: x\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: identity\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3, 3\r\n"), 400),
        (get("Host: a\r\nContent-Length: +3\r\n"), 400),
        (get("Host: a\r\nContent-Length: 0x3\r\n"), 400),
        (get("Host: a\r\nContent-Length: 99999999999999999999\r\n"), 400),
        (get("Host: a\r\nContent-Length:\r\n"), 400),
        (get("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n"), 501),
        (get("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 501),
        (get("Host: a\r\nTransfer-Encoding: xchunked\r\n"), 501),
        (get(&format!("Host: a\r\n{}", "a: b\r\n".repeat(100))), 431),
        (get(&format!("Host: a\r\nx: {}\r\n", "y".repeat(REQUEST_MAX))), 431),
    ];
    table.into_iter().for_each(refused);
}

#[track_caller]
fn refused((text, status): (String, u16)) {
    let shown: String = text.chars().take(100).collect();
    match of(&text) {
        Err(error) => assert_eq!(status_of(error), status, "{shown:?}: {error}"),
        Ok(head) => panic!("{shown:?} was read: {head:?}"),
    }
}

/// Lengths and hosts that hide from one parser.
#[test]
fn what_is_obfuscated_is_refused() {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\n{rest}\r\n");
    let table = [
        (get("Host: a b\r\n"), 400),
        (get("Host: u@a\r\n"), 400),
        (get("Host: a/b\r\n"), 400),
        (get("Host: \u{e4}\r\n"), 400),
        (get("Host: a\r\n\u{b}X: b\r\n"), 400),
        (get("Host: a\r\nX: \u{7f}\r\n"), 400),
        (get("Host: a\r\nTransfer-Encoding : chunked\r\n"), 400),
        (get("Host: a\r\nTransfer-Encoding\r\n: chunked\r\n"), 400),
        (get("Host: a\r\nTransfer-Encoding: x\r\n\tchunked\r\n"), 400),
        (get("Host: a\r\nTransfer-Encoding: \u{c}chunked\r\n"), 400),
        (get("Host: a\r\nContent-Length: \u{c}3\r\n"), 400),
        (get("Host: a\r\nTransfer-Encoding: chunked;q=1\r\n"), 501),
        (get("Host: a\r\nTransfer-Encoding:\r\n"), 501),
        (get("Host: a\r\nTransfer-Encoding: \"chunked\"\r\n"), 501),
        (get("Host: a\r\nTransfer-Encoding: chunked, identity\r\n"), 501),
        (get("Host: a\r\nContent-Length: -3\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3 3\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3;\r\n"), 400),
        (get("Host: a\r\nContent-Length: 3\r\ncontent-length: 4\r\n"), 400),
        (get("Host: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 3\r\n"), 400),
        (get("Host: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n"), 400),
    ];
    table.into_iter().for_each(refused);
}

#[test]
fn a_response_says_where_its_body_ends() {
    let of = |text: &str, method: Method| response(text.as_bytes(), &method);
    let ok = "HTTP/1.1 200 OK\r\n";
    let table = [
        (format!("{ok}Content-Length: 5\r\n\r\n"), Method::GET, (Framing::Length(5), true)),
        (format!("{ok}Content-Length: 5\r\n\r\n"), Method::HEAD, (Framing::Empty, true)),
        (format!("{ok}Transfer-Encoding: Chunked\r\n\r\n"), Method::GET, (Framing::Chunked, true)),
        (format!("{ok}\r\n"), Method::GET, (Framing::Close, false)),
        (format!("{ok}Connection: close\r\nContent-Length: 0\r\n\r\n"), Method::GET, (Framing::Empty, false)),
        ("HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n".into(), Method::GET, (Framing::Empty, true)),
        ("HTTP/1.1 100 Continue\r\n\r\n".into(), Method::POST, (Framing::Empty, true)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n".into(), Method::GET, (Framing::Length(1), false)),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n".into(),
            Method::GET,
            (Framing::Length(1), true),
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Method::GET,
            (Framing::Chunked, false),
        ),
    ];
    for (text, method, wanted) in table {
        let head = of(&text, method).unwrap();
        assert_eq!((head.framing, head.keep_alive), wanted, "{text:?}");
    }
    for (text, is_good) in [
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 101 Switching\r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ] {
        let head = of(text, Method::GET);
        assert_eq!(head.as_ref().is_ok_and(|head| head.headers.is_empty()), is_good, "{text:?}");
    }
    for bad in ["HTTP/2 200\r\n\r\n", "HTTP/1.1 2000\r\n\r\n", "HTTP/1.1 20x\r\n\r\n", "200 OK\r\n\r\n"] {
        assert!(of(bad, Method::GET).is_err(), "{bad:?}");
    }
    assert!(
        of(&format!("{ok}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), Method::GET).is_err()
    );
}

#[test]
fn the_end_of_a_head_is_found_piece_by_piece() {
    let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
    let mut search = End::default();
    for cut in 0..text.len() - 4 {
        assert_eq!(search.find(&text[..cut], REQUEST_MAX), Ok(None), "{cut}");
    }
    assert_eq!(search.find(text, REQUEST_MAX), Ok(Some(text.len() - 4)));
    assert_eq!(End::default().find(text, REQUEST_MAX), Ok(Some(text.len() - 4)));
    assert_eq!(End::default().find(b"\r\n", REQUEST_MAX), Ok(Some(2)));
}
