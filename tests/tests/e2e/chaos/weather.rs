//! Paths that lose and delay packets.

use std::time::Duration;

use anyhow::Result;
use lab::{Capture, ImpairedPath, Impairment, Transport};

use super::{DEADLINE, Holdings, Outcome, SERVER_V4, Stage, answer, assert_hidden};

/// The client's address on the way to the servers.
const CLIENT: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 2);

#[test]
fn over_a_path_that_loses_a_third_and_delays_the_rest_clients_get_answers_or_explained_failures()
-> Result<()> {
    let stage = Stage::new()?;
    let _servers = stage.servers(&Transport::ALL, answer)?;
    let daemon = stage.daemon(&Transport::ALL, &[])?;
    stage.assert_all_answered("warm", &Transport::ALL)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    let bad = Impairment {
        loss_percent: 30,
        delay: Duration::from_millis(100),
    };
    let (client, net) = (&stage.lab.client, &stage.lab.net);
    let path = ImpairedPath::lay(client, CLIENT, net, SERVER_V4, bad)?;
    let on_the_path = Capture::start(client, ImpairedPath::DEVICE)?;
    let mut answered = 0;
    for _ in 0..5 {
        let outcomes = stage.ask_all("storm", &Transport::ALL)?;
        answered += outcomes
            .iter()
            .filter(|&outcome| *outcome == Outcome::Answered)
            .count();
    }
    assert!(answered > 0, "nothing got through");

    path.set(Impairment {
        loss_percent: 0,
        ..bad
    });
    stage.wait_until_answered(&Transport::ALL)?;
    path.set(Impairment::default());
    stage.wait_until_answered(&Transport::ALL)?;
    stage.assert_all_answered("calm", &Transport::ALL)?;
    on_the_path.wait_for("a plain query", |packet| packet.involves_port(53))?;
    assert_hidden(&on_the_path)?;
    stage.assert_nothing_in_plain_text()?;
    before.wait_until_back(&daemon)
}
