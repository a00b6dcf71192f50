//! The ways to the upstreams: whether they can be reached, and without the tunnels where that is wanted.

use super::Point;
use crate::daemon::{Course, Passage};
use crate::net::links;

const REACH: &str = "add a route to it (ip route), or name an upstream that can be reached";

pub(super) fn judge(passages: &[Passage]) -> Vec<Point> {
    let is_cut_off = passages
        .iter()
        .all(|it| matches!(it.course, Course::Nowhere(_)));
    passages.iter().map(|it| point(it, is_cut_off)).collect()
}

/// `is_cut_off` says that no upstream at all can be reached.
fn point(passage: &Passage, is_cut_off: bool) -> Point {
    let topic = format!("upstream {}", passage.upstream);
    let mark = match passage.mark {
        0 => "no mark".to_owned(),
        mark => format!("mark {mark:#x}"),
    };
    match &passage.course {
        Course::By(interface) => {
            let name =
                links::name_of(*interface).unwrap_or_else(|| "an unnamed interface".to_owned());
            let whither = if passage.avoids_tunnels {
                "beside the tunnels"
            } else {
                "as its route says"
            };
            Point::good(topic, format!("by {name}, {mark}, {whither}"))
        }
        Course::Tunnel { name, is_taken } => {
            let advice = "set bypass.device to the interface of your uplink, or bypass.mark to a mark that your routing rules \
                          send there";
            if *is_taken {
                let found = format!(
                    "into the tunnel {name}, {mark}, where a rule takes queries, which come back"
                );
                Point::bad(topic, found, advice)
            } else {
                let found =
                    format!("into the tunnel {name}, {mark}, whose far end sees the queries");
                Point::doubtful(topic, found, advice)
            }
        }
        Course::Reader => Point::bad(
            topic,
            "to the daemon's own device, so that queries come back",
            "remove that route",
        ),
        Course::Nowhere(error) if is_cut_off => {
            Point::bad(topic, format!("{error}, nor to any other upstream"), REACH)
        }
        Course::Nowhere(error) => Point::doubtful(topic, error.to_string(), REACH),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;

    use super::*;
    use crate::doctor::Verdict;
    use crate::net::RouteError;

    #[test]
    fn one_that_cannot_be_reached_is_bad_only_where_no_other_can() {
        let one_of_two = judge(&[passage(nowhere()), passage(Course::By(1))]);
        let both = judge(&[passage(nowhere()), passage(nowhere())]);

        assert_eq!(verdicts(&one_of_two), [Verdict::Doubtful, Verdict::Good]);
        assert_eq!(verdicts(&both), [Verdict::Bad, Verdict::Bad]);
    }

    #[test]
    fn queries_that_come_back_are_bad_and_those_that_a_tunnel_sees_doubtful() {
        let tunnel = |is_taken| Course::Tunnel {
            name: "wg0".to_owned(),
            is_taken,
        };

        let points = judge(&[
            passage(tunnel(false)),
            passage(tunnel(true)),
            passage(Course::Reader),
        ]);

        let verdicts = verdicts(&points);
        assert_eq!(verdicts, [Verdict::Doubtful, Verdict::Bad, Verdict::Bad]);
    }

    fn verdicts(points: &[Point]) -> Vec<Verdict> {
        points.iter().map(|it| it.verdict).collect()
    }

    fn nowhere() -> Course {
        Course::Nowhere(RouteError::NoRoute {
            destination: [192, 0, 2, 53].into(),
            source: io::Error::from_raw_os_error(libc::ENETUNREACH),
        })
    }

    fn passage(course: Course) -> Passage {
        Passage {
            upstream: SocketAddr::from(([192, 0, 2, 53], 53)),
            mark: 0x1ce7,
            avoids_tunnels: true,
            course,
        }
    }
}
