//! DNS queries as HTTP requests and replies as HTTP responses (RFC 8484), whichever version of HTTP carries them.

use std::io;

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL_NOPAD;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method as HttpMethod, Request, StatusCode, Uri, Version, response};

use super::encrypted_url::{EncryptedUrl, Method};

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

    pub(super) fn message(self) -> Bytes {
        if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
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

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Response;

    use super::super::UpstreamUrl;
    use super::*;

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
        assert_eq!(body.message(), "onetwothree");
        let mut endless = Body::default();
        let chunk = Bytes::from(vec![0; 40_000]);
        endless.push(chunk.clone()).unwrap();
        assert!(endless.push(chunk).is_err());
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
