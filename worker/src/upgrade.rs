//! From HTTP to WebSocket: what a request head gets as its answer
//! (socketcluster.md section 1).

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use tungstenite::handshake::server::create_response;

/// Header lines a head may have.
const HEADERS_MAX: usize = 100;
/// When a client that found no room should come back.
const RETRY_AFTER_S: u32 = 5;

/// What is served where, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpgradeRules {
    /// With or without its last slash.
    pub(crate) path: String,
    /// `host:port`, `host:*`, `*:port` or `*:*`.
    pub(crate) origins: Vec<String>,
    pub(crate) head_bytes_max: usize,
    /// A path whose messages come straight back, for the conformance tests of
    /// the frame codec.
    pub(crate) echo_path: Option<String>,
}

/// What to do with a connection whose first bytes are there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The head is not complete.
    Incomplete,
    /// Answer, then speak WebSocket from byte `head_len` on.
    Upgrade {
        head_len: usize,
        answer: Vec<u8>,
        echo: bool,
    },
    /// Answer, then close.
    Refuse { answer: Vec<u8> },
}

/// Whether [`decide`] is worth its while: a head that comes byte by byte is not
/// parsed anew for each. `scanned` is how much of it was looked at before.
pub(crate) fn may_be_complete(input: &[u8], scanned: &mut usize, rules: &UpgradeRules) -> bool {
    // The first bytes always are: garbage shows there.
    let is_first = *scanned == 0;
    let news = input.get(*scanned..).unwrap_or_default();
    *scanned = input.len();
    is_first || news.contains(&b'\n') || input.len() >= rules.head_bytes_max
}

/// Decides on the bytes received so far.
pub(crate) fn decide(input: &[u8], rules: &UpgradeRules) -> Decision {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(input) {
        Ok(httparse::Status::Complete(len)) if len <= rules.head_bytes_max => len,
        Ok(httparse::Status::Partial) if input.len() < rules.head_bytes_max => {
            return Decision::Incomplete;
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return refuse(431, "The request head is too large");
        }
        Err(error) => return refuse(400, &format!("Malformed request: {error}")),
    };
    let Some(request) = request_of(&head) else {
        return refuse(400, "Malformed request");
    };
    answer(&request, head_len, rules)
}

/// The answer to a connection beyond the limit.
pub(crate) fn cluster_full() -> Vec<u8> {
    let extra = format!("Retry-After: {RETRY_AFTER_S}\r\n");
    plain(503, &extra, "The cluster is full")
}

/// The answer to a connection beyond the limit for its address.
pub(crate) fn address_full() -> Vec<u8> {
    let extra = format!("Retry-After: {RETRY_AFTER_S}\r\n");
    plain(429, &extra, "Too many connections from this address")
}

/// The answer to a request that a worker which is ending does not serve.
pub(crate) fn closing() -> Vec<u8> {
    plain(503, "", "The server is closing")
}

/// The answer to a head that does not come to its end in time.
pub(crate) fn head_timeout() -> Vec<u8> {
    plain(408, "", "The request head took too long")
}

fn answer(request: &Request<()>, head_len: usize, rules: &UpgradeRules) -> Decision {
    let path = request.uri().path();
    let echo = rules.echo_path.as_deref() == Some(path);
    if path == "/health-check" {
        return if request.method() == Method::GET {
            Decision::Refuse {
                answer: plain(200, "", "OK"),
            }
        } else {
            refuse(405, "Only GET is served here")
        };
    }
    if !echo && path.trim_end_matches('/') != rules.path.trim_end_matches('/') {
        return refuse(400, "Wrong path");
    }
    if request.method() != Method::GET {
        return refuse(405, "Only GET is served here");
    }
    let origin = request.headers().get("origin").map(HeaderValue::as_bytes);
    if !origin_is_allowed(origin, &rules.origins) {
        return refuse(403, "Origin is not allowed");
    }
    match create_response(request) {
        Ok(response) => Decision::Upgrade {
            head_len,
            answer: encode(&response),
            echo,
        },
        Err(error) => refuse(400, &error.to_string()),
    }
}

fn request_of(head: &httparse::Request<'_, '_>) -> Option<Request<()>> {
    let version = match head.version? {
        0 => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let mut request = Request::new(());
    *request.method_mut() = head.method?.parse().ok()?;
    *request.uri_mut() = head.path?.parse::<Uri>().ok()?;
    *request.version_mut() = version;
    for header in head.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        request
            .headers_mut()
            .append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    Some(request)
}

/// The reference's rule: the origin's `host:port`, `host:*` or `*:port` is among
/// the allowed ones. A missing or `null` origin counts as an unnamed host on
/// port 80.
fn origin_is_allowed(origin: Option<&[u8]>, allowed: &[String]) -> bool {
    if allowed.iter().any(|rule| rule == "*:*") {
        return true;
    }
    let origin = match origin {
        None | Some(b"null") => None,
        Some(raw) => match std::str::from_utf8(raw)
            .ok()
            .and_then(|raw| raw.parse::<Uri>().ok())
        {
            Some(uri) => Some(uri),
            None => return false,
        },
    };
    let host = origin.as_ref().and_then(Uri::host).unwrap_or("*");
    let is_https = origin.as_ref().and_then(Uri::scheme_str) == Some("https");
    let default_port = if is_https { 443 } else { 80 };
    let port = origin
        .as_ref()
        .and_then(Uri::port_u16)
        .unwrap_or(default_port);
    let [exact, any_port, any_host] = [
        format!("{host}:{port}"),
        format!("{host}:*"),
        format!("*:{port}"),
    ];
    allowed.iter().any(|rule| {
        [&exact, &any_port, &any_host]
            .into_iter()
            .any(|form| rule.eq_ignore_ascii_case(form))
    })
}

fn refuse(status: u16, reason: &str) -> Decision {
    Decision::Refuse {
        answer: plain(status, "", reason),
    }
}

fn plain(status: u16, extra_headers: &str, body: &str) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok();
    let reason = reason
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n{extra_headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn encode(response: &http::Response<()>) -> Vec<u8> {
    let mut head = String::from("HTTP/1.1 101 Switching Protocols\r\n");
    for (name, value) in response.headers() {
        // Values are tokens that tungstenite made.
        let value = value.to_str().unwrap_or_default();
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> UpgradeRules {
        UpgradeRules {
            path: "/socketcluster/".into(),
            origins: vec!["*:*".into()],
            head_bytes_max: 2048,
            echo_path: None,
        }
    }

    fn request(first_line: &str, extra: &str) -> Vec<u8> {
        format!(
            "{first_line}\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n"
        )
        .into_bytes()
    }

    fn status(decision: Decision) -> String {
        let answer = match decision {
            Decision::Upgrade { answer, .. } | Decision::Refuse { answer } => answer,
            Decision::Incomplete => return "incomplete".into(),
        };
        String::from_utf8(answer).unwrap()[9..12].into()
    }

    #[test]
    fn a_correct_request_is_upgraded_on_both_spellings_of_the_path_with_any_query() {
        for target in [
            "/socketcluster/",
            "/socketcluster",
            "/socketcluster/?a=1&a=2+3",
        ] {
            let input = request(&format!("GET {target} HTTP/1.1"), "");
            let Decision::Upgrade {
                head_len,
                answer,
                echo: false,
            } = decide(&input, &rules())
            else {
                panic!("{target} was not upgraded");
            };
            assert_eq!(head_len, input.len());
            let answer = String::from_utf8(answer).unwrap().to_lowercase();
            assert!(
                answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
                "{answer}"
            );
            assert!(answer.ends_with("\r\n\r\n"));
        }
    }

    #[test]
    fn bytes_behind_the_head_belong_to_the_websocket() {
        let mut input = request("GET /socketcluster/ HTTP/1.1", "");
        let head_len = input.len();
        input.extend_from_slice(b"\x81\x80abcd");
        let decision = decide(&input, &rules());
        assert!(matches!(decision, Decision::Upgrade { head_len: len, .. } if len == head_len));
    }

    #[test]
    fn every_prefix_of_a_head_is_incomplete() {
        let input = request("GET /socketcluster/ HTTP/1.1", "");
        for len in 0..input.len() {
            assert_eq!(
                decide(&input[..len], &rules()),
                Decision::Incomplete,
                "{len}"
            );
        }
    }

    #[test]
    fn refusals_have_the_references_status() {
        let cases = [
            ("GET /other/ HTTP/1.1", "", "400"),
            ("POST /socketcluster/ HTTP/1.1", "", "405"),
            ("GET /health-check HTTP/1.1", "", "200"),
            ("POST /health-check HTTP/1.1", "", "405"),
            ("GET /socketcluster/ HTTP/1.0", "", "400"),
            ("\x16\x03\x01 garbage", "", "400"),
        ];
        for (first_line, extra, expected) in cases {
            assert_eq!(
                status(decide(&request(first_line, extra), &rules())),
                expected,
                "{first_line}"
            );
        }
        let plain = b"GET /socketcluster/ HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(status(decide(plain, &rules())), "400");
        let old = b"GET /socketcluster/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert_eq!(status(decide(old, &rules())), "400");
    }

    #[test]
    fn a_head_beyond_the_limit_is_refused_whether_or_not_it_is_complete() {
        let long = request(
            "GET /socketcluster/ HTTP/1.1",
            &format!("X: {}\r\n", "y".repeat(4000)),
        );
        assert_eq!(status(decide(&long, &rules())), "431");
        assert_eq!(status(decide(&long[..3000], &rules())), "431");
        let many = request("GET /socketcluster/ HTTP/1.1", &"a: b\r\n".repeat(120));
        assert_eq!(status(decide(&many, &rules())), "431");
    }

    #[test]
    fn origins_are_allowed_by_host_and_port() {
        let cases = [
            (Some("http://game.example"), "game.example:80", true),
            (Some("https://game.example"), "game.example:443", true),
            (Some("https://game.example:8443"), "game.example:*", true),
            (Some("https://game.example:8443"), "*:8443", true),
            (Some("https://evil.example"), "game.example:443", false),
            (
                Some("http://game.example.evil.example"),
                "game.example:80",
                false,
            ),
            (Some("null"), "*:80", true),
            (None, "*:80", true),
            (None, "game.example:80", false),
            (Some("::not an origin::"), "*:80", false),
        ];
        for (origin, rule, expected) in cases {
            let allowed = origin_is_allowed(origin.map(str::as_bytes), &[rule.to_owned()]);
            assert_eq!(allowed, expected, "{origin:?} against {rule}");
        }
    }

    #[test]
    fn the_echo_path_exists_only_where_it_is_asked_for() {
        let input = request("GET /echo HTTP/1.1", "");
        assert_eq!(status(decide(&input, &rules())), "400");
        let rules = UpgradeRules {
            echo_path: Some("/echo".into()),
            ..rules()
        };
        assert!(matches!(
            decide(&input, &rules),
            Decision::Upgrade { echo: true, .. }
        ));
    }
}
