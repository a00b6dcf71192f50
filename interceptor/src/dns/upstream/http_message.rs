//! DNS queries as HTTP requests and replies as HTTP responses (RFC 8484), whichever version of HTTP carries them.

use std::io;

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL_NOPAD;
use http::header::{ACCEPT, AGE, CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method as HttpMethod, Request, StatusCode, Uri, Version, response};

use super::encrypted_url::{EncryptedUrl, Method};
use crate::dns::wire::{Header, Records, Scan};

/// The media type of DNS messages (RFC 8484 §6).
const DNS_MESSAGE: HeaderValue = HeaderValue::from_static("application/dns-message");

/// Octets of the longest DNS message.
const MAX_MESSAGE: usize = 65_535;

/// Makes the requests to one server.
pub(super) struct Requests {
    uri: Uri,
    method: Method,
    version: Version,
}

impl Requests {
    pub(super) fn new(url: &EncryptedUrl, version: Version) -> io::Result<Self> {
        let uri = Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(url.authority())
            .path_and_query(url.path())
            .build();
        Ok(Self {
            uri: uri.map_err(invalid)?,
            method: url.method(),
            version,
        })
    }

    /// The request for `query`, and the body where it has one.
    pub(super) fn request(&self, query: Bytes) -> io::Result<(Request<()>, Option<Bytes>)> {
        let request = Request::builder()
            .version(self.version)
            .header(ACCEPT, DNS_MESSAGE);
        match self.method {
            Method::Post => {
                let request = request
                    .method(HttpMethod::POST)
                    .uri(self.uri.clone())
                    .header(CONTENT_TYPE, DNS_MESSAGE)
                    .header(CONTENT_LENGTH, query.len());
                Ok((request.body(()).map_err(invalid)?, Some(query)))
            }
            Method::Get => {
                let path = self.uri.path();
                let path = format!("{path}?dns={}", BASE64URL_NOPAD.encode(&query));
                let mut parts = self.uri.clone().into_parts();
                parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(invalid)?);
                let uri = Uri::from_parts(parts).map_err(invalid)?;
                let request = request.method(HttpMethod::GET).uri(uri);
                Ok((request.body(()).map_err(invalid)?, None))
            }
        }
    }
}

/// A response's body while it arrives.
#[derive(Default)]
pub(super) struct Body {
    first: Bytes,
    rest: BytesMut,
}

impl Body {
    pub(super) fn push(&mut self, chunk: Bytes) -> io::Result<()> {
        if self.first.len() + self.rest.len() + chunk.len() > MAX_MESSAGE {
            return Err(invalid("the response is longer than a DNS message can be"));
        }
        if self.rest.is_empty() && self.first.is_empty() {
            self.first = chunk;
            return Ok(());
        }
        let first = std::mem::take(&mut self.first);
        self.rest.extend_from_slice(&first);
        self.rest.extend_from_slice(&chunk);
        Ok(())
    }

    /// The message, which is `age` seconds old.
    pub(super) fn message(self, age: u32) -> Bytes {
        let message = if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
        };
        if age == 0 {
            message
        } else {
            aged(&message, age)
        }
    }
}

/// Whether a response brings a DNS message.
pub(super) fn check(response: &response::Parts) -> io::Result<()> {
    if response.status != StatusCode::OK {
        return Err(invalid(format!(
            "the server answers with HTTP status {}; the URL's path may be wrong",
            response.status
        )));
    }
    let kind = response.headers.get(CONTENT_TYPE);
    let is_message = kind.is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.get(..DNS_MESSAGE.len())
            .is_some_and(|kind| kind.eq_ignore_ascii_case(DNS_MESSAGE.as_bytes()))
    });
    if !is_message {
        return Err(invalid(format!(
            "the server answers with {}, not with a DNS message; the URL's path may be wrong",
            kind.and_then(|kind| kind.to_str().ok())
                .unwrap_or("something nameless")
        )));
    }
    Ok(())
}

/// For how many seconds a response has been in caches on its way (RFC 9111 §5.1); 0 where that is not said, or not so
/// that it can be understood.
pub(super) fn age(response: &response::Parts) -> u32 {
    let digits = response.headers.get(AGE).map_or("", |age| {
        let age = age.to_str().unwrap_or_default().trim();
        age.split(',').next().unwrap_or_default().trim_end()
    });
    if digits.is_empty() || !digits.bytes().all(|octet| octet.is_ascii_digit()) {
        return 0;
    }
    digits.parse().unwrap_or(u32::MAX)
}

/// `message` with what `age` seconds leave of its TTLs (RFC 8484 §5.1).
fn aged(message: &Bytes, age: u32) -> Bytes {
    let question = Header::parse(message)
        .and_then(|header| Some((header, Scan::of_question(message, header).question?)));
    let Some((header, question)) = question else {
        return message.clone();
    };
    let mut aged = message.to_vec();
    for record in Records::new(message, header, question.end).flatten() {
        // A TTL with its highest bit set counts as zero (RFC 2181 §8).
        let ttl = i32::try_from(record.ttl).map_or(0, i32::cast_unsigned);
        let octets = aged.get_mut(record.ttl_at..record.ttl_at + 4);
        if let Some(octets) = octets.filter(|_| !record.is_opt()) {
            octets.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
        }
    }
    aged.into()
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_proto::op::Message;
    use http::Response;
    use proptest::prelude::*;

    use super::super::UpstreamUrl;
    use super::*;
    use crate::dns::testing;

    #[test]
    fn a_query_is_posted_with_its_type_and_length() {
        let (request, body) = request("https://192.0.2.1#dns.example", b"query");
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri(), "https://dns.example/dns-query");
        assert_eq!(request.headers()["content-type"], "application/dns-message");
        assert_eq!(request.headers()["accept"], "application/dns-message");
        assert_eq!(request.headers()["content-length"], "5");
        assert_eq!(body.as_deref(), Some(b"query".as_slice()));
    }

    #[test]
    fn a_query_that_is_gotten_is_in_the_path_without_padding_characters() {
        let (request, body) = request("https://192.0.2.1/q?method=get", b"\xff\xfe");
        assert_eq!(request.method(), "GET");
        assert_eq!(request.uri(), "https://192.0.2.1/q?dns=__4");
        assert_eq!(body, None);
    }

    #[test]
    fn only_dns_messages_with_status_200_are_taken() {
        for (status, kind, problem) in [
            (200, "application/dns-message", None),
            (200, "Application/DNS-Message; charset=x", None),
            (404, "text/html", Some("HTTP status 404 Not Found")),
            (200, "text/html", Some("answers with text/html")),
            (302, "application/dns-message", Some("HTTP status 302")),
        ] {
            let response = Response::builder()
                .status(status)
                .header("content-type", kind);
            let (parts, ()) = response.body(()).unwrap().into_parts();
            match (check(&parts), problem) {
                (Ok(()), None) => {}
                (Err(error), Some(problem)) => {
                    assert!(error.to_string().contains(problem), "{error}");
                }
                other => panic!("{status} {kind}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_body_is_put_together_and_never_longer_than_a_message() {
        let mut body = Body::default();
        for chunk in ["", "one", "", "two", "three"] {
            body.push(Bytes::from_static(chunk.as_bytes())).unwrap();
        }
        assert_eq!(body.message(0), "onetwothree");
        let mut endless = Body::default();
        let chunk = Bytes::from(vec![0; 40_000]);
        endless.push(chunk.clone()).unwrap();
        assert!(endless.push(chunk).is_err());
    }

    #[test]
    fn the_age_of_a_response_is_read_where_it_is_a_number() {
        for (header, seconds) in [
            (Some("0"), 0),
            (Some("250"), 250),
            (Some("250, 7"), 250),
            (Some("99999999999999"), u32::MAX),
            (Some("-1"), 0),
            (Some("1.5"), 0),
            (Some("soon"), 0),
            (Some(""), 0),
            (None, 0),
        ] {
            let mut response = Response::builder().status(200);
            if let Some(header) = header {
                response = response.header("age", header);
            }
            let (parts, ()) = response.body(()).unwrap().into_parts();
            assert_eq!(age(&parts), seconds, "{header:?}");
        }
    }

    #[test]
    fn ttls_are_shorter_by_the_age_and_nothing_else_changes() {
        let reply = testing::reply_of(&testing::edns_query("aged.example.", "A", 1232), 3);
        let before = Message::from_vec(&reply).unwrap();
        for (age, left) in [(0, 300), (1, 299), (300, 0), (301, 0), (u32::MAX, 0)] {
            let mut body = Body::default();
            body.push(reply.clone().into()).unwrap();
            let mut after = Message::from_vec(&body.message(age)).unwrap();
            assert_eq!(after.answers.len(), 3);
            for record in &mut after.answers {
                assert_eq!(record.ttl, left, "{age}");
                record.ttl = testing::TTL;
            }
            assert_eq!(after, before);
        }
    }

    proptest! {
        #[test]
        fn no_message_is_longer_or_shorter_for_its_age(
            mut octets in prop::collection::vec(any::<u8>(), 0..200),
            is_reply in any::<bool>(),
            at in 0usize..100,
            age in any::<u32>(),
        ) {
            if is_reply {
                let mut reply = testing::reply_of(&testing::query("a.example.", "A"), 2);
                if let (Some(damaged), Some(octet)) = (reply.get_mut(at), octets.first()) {
                    *damaged = *octet;
                }
                octets = reply;
            }
            let message = Bytes::from(octets);
            prop_assert_eq!(aged(&message, age).len(), message.len());
        }
    }

    fn request(url: &str, query: &'static [u8]) -> (Request<()>, Option<Bytes>) {
        let Ok(UpstreamUrl::Encrypted(url)) = url.parse() else {
            panic!("{url} is no URL");
        };
        let url: Arc<EncryptedUrl> = url;
        let requests = Requests::new(&url, Version::HTTP_2).unwrap();
        requests.request(Bytes::from_static(query)).unwrap()
    }
}
