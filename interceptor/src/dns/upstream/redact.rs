//! What of a text that is meant to be a URL can be shown to anybody: not what a provider may know its customer by.
//!
//! User information, paths and the values of unknown parameters can be tokens. Errors reach logs, so that they are left out
//! of all of them alike; the file and line, or the flag, say which URL it is.

use std::net::Ipv6Addr;

use super::encrypted_url::{DEFAULT_PATH, PARAMETERS, TEMPLATE};

/// What stands for what is left out.
pub(super) const HIDDEN: &str = "…";

/// `text` without what may be secret, whether or not it is a URL.
pub(super) fn redacted(text: &str) -> String {
    let text = text.replacen(TEMPLATE, "", 1);
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (format!("{scheme}://"), rest),
        _ => (String::new(), text.as_str()),
    };
    let (authority, rest) = split_before(rest, &['/', '\\', '?', '#']);
    // A password with one of these characters, perhaps.
    if rest.contains('@') {
        return format!("{scheme}{HIDDEN}");
    }
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{}", shown_host(host)),
        None => shown_host(authority),
    };
    let (rest, fragment) = split_before(rest, &['#']);
    let (path, query) = split_before(rest, &['?']);
    let query = match query.strip_prefix('?') {
        Some(query) => {
            let parameters: Vec<String> = query.split('&').map(parameter).collect();
            format!("?{}", parameters.join("&"))
        }
        None => String::new(),
    };
    let fragment = match fragment.strip_prefix('#') {
        Some(name) => format!("#{}", shown_name(name)),
        None => String::new(),
    };
    format!("{scheme}{authority}{}{query}{fragment}", shown_path(path))
}

/// A path that all the world uses, or that there is another one.
pub(super) fn shown_path(path: &str) -> String {
    match path {
        "" | "/" | DEFAULT_PATH => path.to_owned(),
        _ => format!("/{HIDDEN}"),
    }
}

/// A host with its port; what is no port may be the password of a user whose host was forgotten.
fn shown_host(text: &str) -> String {
    if text.parse::<Ipv6Addr>().is_ok() {
        return text.to_owned();
    }
    let (address, rest) = text.split_at(text.rfind(']').map_or(0, |end| end + 1));
    match rest.split_once(':') {
        Some((host, port)) if !port.bytes().all(|octet| octet.is_ascii_digit()) => {
            format!("{address}{host}:{HIDDEN}")
        }
        _ => text.to_owned(),
    }
}

/// A name, where it looks like one.
pub(super) fn shown_name(name: &str) -> &str {
    let is_usual = |octet: u8| octet.is_ascii_alphanumeric() || b".:-_".contains(&octet);
    if name.bytes().all(is_usual) {
        name
    } else {
        HIDDEN
    }
}

fn parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, _)) if PARAMETERS.contains(&name) => parameter.to_owned(),
        Some((name, _)) => format!("{}={HIDDEN}", shown_name(name)),
        None if parameter.is_empty() || PARAMETERS.contains(&parameter) => parameter.to_owned(),
        None => HIDDEN.to_owned(),
    }
}

fn is_scheme(text: &str) -> bool {
    let is_usual = |octet: u8| octet.is_ascii_alphanumeric() || b"+-.".contains(&octet);
    text.bytes().all(is_usual)
}

fn split_before<'a>(text: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::UpstreamUrl;
    use super::*;

    const TOKEN: &str = "S3CR3T";

    #[test]
    fn what_helps_to_find_a_mistake_stays() {
        for (text, shown) in [
            ("udp://8.8.8.8:53", "udp://8.8.8.8:53"),
            ("8.8.8.8", "8.8.8.8"),
            (
                "tls://192.0.2.1?pool=17#dns.example",
                "tls://192.0.2.1?pool=17#dns.example",
            ),
            (
                "https://dns.example/dns-query{?dns}",
                "https://dns.example/dns-query",
            ),
            (
                "https://dns.example/S3CR3T?pool=0",
                "https://dns.example/…?pool=0",
            ),
            (
                "https://dns.example/?token=S3CR3T&pool=2",
                "https://dns.example/?token=…&pool=2",
            ),
            (
                "https://dns.example?S3CR3T&&pin",
                "https://dns.example?…&&pin",
            ),
            (
                "https://me:S3CR3T@dns.example:8443/",
                "https://…@dns.example:8443/",
            ),
            ("https://me:S3/CR3T@dns.example", "https://…"),
            ("https://me:S3CR3T/", "https://me:…/"),
            ("me:S3CR3T", "me:…"),
            ("tls://[2001:db8::1]:853", "tls://[2001:db8::1]:853"),
            ("tls://[2001:db8::1]:S3CR3T", "tls://[2001:db8::1]:…"),
            ("2001:db8::1", "2001:db8::1"),
            ("dns.example/S3CR3T", "dns.example/…"),
            ("https:/dns.example/S3CR3T", "https:/…"),
            ("https://dns.example\\S3CR3T", "https://dns.example/…"),
            ("https://dns.example#/S3CR3T", "https://dns.example#…"),
            ("", ""),
        ] {
            assert_eq!(redacted(text), shown, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_token_is_shown_whatever_is_right_or_wrong_about_its_url(
            start in "(udp|tcp|tls|https|h3|quic|http|htps|HTTPS)://|",
            user in prop::option::of("[!$-.0-<>@-Z^-~]{0,3}S3CR3T[!$-.0-<>@-Z^-~]{0,3}@"),
            host in "(192\\.0\\.2\\.1|\\[::1\\]|dns\\.example|8\\.8\\.8)(:([0-9]{1,6}|S3CR3T))?",
            path in "/[!$-<>-~]{0,3}S3CR3T[!$-<>-~]{0,3}",
            query in "(\\?(pool=2&)?([a-z]{1,8}q=S3CR3T|S3CR3T)?(&pool=[0-9]{1,2})?)?",
            fragment in "(#[ -~]{0,6})?",
        ) {
            let user = user.unwrap_or_default();
            let text = format!("{start}{user}{host}{path}{query}{fragment}");
            let shown = match text.parse::<UpstreamUrl>() {
                Ok(url) => format!("{url} {}", url.label()),
                Err(error) => error.to_string(),
            };
            prop_assert!(!shown.contains(TOKEN), "{}: {}", text, shown);
            prop_assert!(!redacted(&text).contains(TOKEN), "{}", text);
        }

        #[test]
        fn any_text_can_be_redacted(text in "\\PC{0,60}") {
            let _ = redacted(&text);
        }
    }
}
