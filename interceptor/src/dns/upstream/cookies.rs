//! DNS cookies towards one upstream (RFC 7873): who forges a reply over UDP has to know ours.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::dns::query::Request;
use crate::dns::reply::Reply;
use crate::dns::wire::Rcode;

/// The cookies of both sides.
pub(super) struct Cookies {
    ours: [u8; 8],
    server: Mutex<Server>,
}

/// What is known of the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Server {
    /// It has given no cookie.
    #[default]
    Silent,
    /// It has given this one, of 8 to 32 octets, and is to repeat ours in every reply.
    Given(Vec<u8>),
    /// It takes cookies for a mistake.
    Averse,
}

/// What a reply to a query with a cookie is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It is the reply.
    Reply(Reply),
    /// The query is to be asked again, with the cookie that has come, or without any.
    AskAgain,
}

impl Cookies {
    pub(super) fn new() -> Self {
        Self {
            ours: rand::random(),
            server: Mutex::default(),
        }
    }

    /// `request` with our cookie; `None` where it can have none or shall have none.
    pub(super) fn add(&self, request: &Request) -> Option<Request> {
        match &*self.server() {
            Server::Silent => request.with_cookie(self.ours, &[]),
            Server::Given(cookie) => request.with_cookie(self.ours, cookie),
            Server::Averse => None,
        }
    }

    /// Judges a reply, and learns from it; it has our cookie or none. `is_last` where nothing will be asked again.
    ///
    /// A reply without a cookie of an upstream that has given one before may be forged: what is left of it says that
    /// TCP is to be asked.
    pub(super) fn judge(&self, reply: Reply, is_last: bool) -> Worth {
        let mut server = self.server();
        let cookie = reply.server_cookie().map(<[u8]>::to_vec);
        let is_given = matches!(&*server, Server::Given(_));
        // Without OPT it is EDNS as a whole that it takes for a mistake.
        let is_refused =
            reply.opt().is_some() && matches!(reply.rcode(), Rcode::FORMERR | Rcode::NOTIMP);
        match cookie {
            Some(cookie) => {
                *server = Server::Given(cookie);
                match (reply.rcode(), is_last) {
                    (Rcode::BADCOOKIE, false) => Worth::AskAgain,
                    (Rcode::BADCOOKIE, true) => Worth::Reply(reply.into_truncated()),
                    _ => Worth::Reply(reply.without_cookie()),
                }
            }
            None if is_given => {
                *server = Server::Silent;
                Worth::Reply(reply.into_truncated())
            }
            None if is_refused && !is_last => {
                *server = Server::Averse;
                Worth::AskAgain
            }
            None => Worth::Reply(reply.without_cookie()),
        }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::query::Query;
    use crate::dns::reply::Unusable;
    use crate::dns::testing;

    const COOKIE: [u8; 8] = [7; 8];

    #[test]
    fn the_servers_cookie_is_repeated_and_kept_from_clients() {
        let cookies = Cookies::new();
        let first = cookies.add(&request()).unwrap();
        let reply = reply(&first, 0, Some((cookies.ours, &COOKIE)));
        let Worth::Reply(given) = cookies.judge(parse(&reply, &first).unwrap(), false) else {
            panic!("a good reply is asked for again");
        };
        assert_eq!(given.octets(), self::reply(&request(), 0, None));
        let second = cookies.add(&request()).unwrap().with_id(0);
        let sent = [&cookies.ours[..], &COOKIE].concat();
        assert!(second.ends_with(&sent));
    }

    #[test]
    fn a_reply_with_another_cookie_than_ours_is_none() {
        let cookies = Cookies::new();
        let asked = cookies.add(&request()).unwrap();
        let mut wrong = cookies.ours;
        wrong[3] ^= 1;
        let forged = reply(&asked, 0, Some((wrong, &COOKIE)));
        assert_eq!(parse(&forged, &asked), Err(Unusable::Cookie));
        let short = reply(&asked, 0, Some((cookies.ours, &COOKIE[..3])));
        assert_eq!(parse(&short, &asked), Err(Unusable::Cookie));
    }

    #[test]
    fn a_reply_without_cookie_says_to_ask_tcp_once_one_was_given() {
        let cookies = Cookies::new();
        let asked = cookies.add(&request()).unwrap();
        let bare = parse(&reply(&asked, 0, None), &asked).unwrap();
        let Worth::Reply(before) = cookies.judge(bare.clone(), false) else {
            panic!("an upstream may have no cookies");
        };
        assert!(!before.is_truncated());
        let with = reply(&asked, 0, Some((cookies.ours, &COOKIE)));
        cookies.judge(parse(&with, &asked).unwrap(), false);
        let Worth::Reply(after) = cookies.judge(bare, false) else {
            panic!("TCP is asked, not UDP once more");
        };
        assert!(after.is_truncated());
        assert_eq!(after.octets().len(), after.question().end);
    }

    #[test]
    fn a_bad_cookie_is_mended_once_and_then_tcp_is_asked() {
        let cookies = Cookies::new();
        let asked = cookies.add(&request()).unwrap();
        let bad = reply(&asked, 23, Some((cookies.ours, &COOKIE)));
        let bad = parse(&bad, &asked).unwrap();
        assert_eq!(bad.rcode(), Rcode::BADCOOKIE);
        assert_eq!(cookies.judge(bad.clone(), false), Worth::AskAgain);
        let Worth::Reply(last) = cookies.judge(bad, true) else {
            panic!("the last reply is asked for again");
        };
        assert!(last.is_truncated());
    }

    #[test]
    fn an_upstream_that_takes_cookies_for_a_mistake_gets_none() {
        let cookies = Cookies::new();
        let asked = cookies.add(&request()).unwrap();
        let refused = parse(&reply(&asked, 1, None), &asked).unwrap();
        assert_eq!(cookies.judge(refused, false), Worth::AskAgain);
        assert_eq!(cookies.add(&request()), None);
    }

    #[test]
    fn a_query_without_edns_has_no_cookie_and_a_clients_own_goes_no_further() {
        let cookies = Cookies::new();
        let bare = request().without_opt().unwrap();
        assert_eq!(cookies.add(&bare), None);
        let once = cookies.add(&request()).unwrap();
        assert_eq!(cookies.add(&once), Some(once));
    }

    fn request() -> Request {
        let query = testing::edns_query("www.example.", "A", 1232);
        Query::parse(&query).unwrap().request()
    }

    fn parse(message: &[u8], asked: &Request) -> Result<Reply, Unusable> {
        Reply::parse(message, 0, asked)
    }

    /// A reply with OPT, `rcode`, and cookies of the client and the server.
    fn reply(asked: &Request, rcode: u8, cookies: Option<([u8; 8], &[u8])>) -> Vec<u8> {
        let question = asked.question_octets();
        let mut wire = vec![0, 0, 0x81, 0x80 | rcode & 15, 0, 1, 0, 0, 0, 0, 0, 1];
        wire.extend_from_slice(question);
        wire.extend_from_slice(&[0, 0, 41, 4, 0xd0, rcode >> 4, 0, 0, 0]);
        let option = cookies.map_or_else(Vec::new, |(client, server)| {
            let length = (client.len() + server.len()) as u8;
            [&[0, 10, 0, length][..], &client, server].concat()
        });
        wire.extend_from_slice(&(option.len() as u16).to_be_bytes());
        wire.extend_from_slice(&option);
        wire
    }
}
