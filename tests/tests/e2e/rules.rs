//! Rules are added and removed while traffic flows, and no packet is misjudged.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lab::{Lab, Load, Responder};

#[test]
fn rules_added_and_removed_under_load_misjudge_no_packet() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let toggled: IpAddr = "10.30.30.31".parse()?;
    let unrelated: IpAddr = "10.30.30.32".parse()?;
    let _servers = [
        Responder::far_end(&lab.peer, toggled)?,
        Responder::far_end(&lab.peer, unrelated)?,
    ];

    let staying_load = Load::udp(&lab.client, Lab::dns_v4(), 1)?;
    let staying_tcp = Load::tcp(&lab.client, Lab::dns_v6(), 1)?;
    let unrelated_load = Load::udp(&lab.client, SocketAddr::new(unrelated, 53), 1)?;
    let toggled_load = Load::udp(&lab.client, SocketAddr::new(toggled, 53), 1)?;
    for _ in 0..lab::rounds(40) {
        let id = daemon.rule_add(&["10.30.30.31"])?;
        toggled_load.progress(5)?;
        let prefix = daemon.rule_add(&["10.30.99.0/24", "--protocol", "udp"])?;
        unrelated_load.progress(5)?;
        daemon.rule_remove(prefix)?;
        daemon.rule_remove(id)?;
        toggled_load.progress(5)?;
    }
    staying_load.progress(10)?;

    for load in [staying_load, staying_tcp] {
        let report = load.stop()?;
        assert_eq!(report.queries(), report.resolver, "{report:?}");
    }
    let report = unrelated_load.stop()?;
    assert_eq!(report.queries(), report.far_end, "{report:?}");
    let report = toggled_load.stop()?;
    assert_eq!((report.lost, report.wrong), (0, 0), "{report:?}");
    assert!(report.resolver > 0 && report.far_end > 0, "{report:?}");
    Ok(())
}

#[test]
fn a_rule_counts_the_packets_it_has_matched() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let before = daemon.matched("10.30.30.30")?;

    for _ in 0..3 {
        lab.dig("+notcp @10.30.30.30 www.example.test")?;
    }

    assert_eq!(daemon.matched("10.30.30.30")? - before, 3);
    assert_eq!(daemon.matched("fd30:30:30::30")?, 0);
    Ok(())
}

#[test]
fn a_rule_for_a_prefix_answers_at_all_of_its_addresses() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;

    daemon.rule_add(&["10.30.30.128/25"])?;

    for address in ["10.30.30.128", "10.30.30.200", "10.30.30.255"] {
        let answer = lab.dig(&format!("+short @{address} www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    Ok(())
}

#[test]
fn a_rule_for_one_protocol_and_port_leaves_the_others_to_the_tunnel() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let address: IpAddr = "10.30.30.40".parse()?;
    let _server = Responder::far_end(&lab.peer, address)?;
    let other_port = Responder::start(&lab.peer, SocketAddr::new(address, 5353), |query| {
        lab::dns::address_reply(query, Responder::FAR_ANSWER)
            .into_iter()
            .collect()
    })?;
    let tcp = lab.peer.listen(SocketAddr::new(address, 53))?;

    daemon.rule_add(&["10.30.30.40", "--protocol", "udp", "--port", "53"])?;

    let taken = lab.dig("+short +notcp @10.30.30.40 www.example.test")?;
    assert_eq!(taken, "192.0.2.80\n");
    let passed = lab.dig("+short -p 5353 @10.30.30.40 www.example.test")?;
    assert_eq!(passed.trim(), Responder::FAR_ANSWER.to_string());
    assert_eq!(other_port.seen(), 1);
    let _connection = lab.client.connect(SocketAddr::new(address, 53))?;
    tcp.accept()?;
    Ok(())
}

#[test]
fn a_removed_rule_lets_packets_pass_again() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let _server = Responder::far_end(&lab.peer, "10.30.30.50".parse()?)?;
    let ask = || lab.dig("+short @10.30.30.50 www.example.test");
    let far = format!("{}\n", Responder::FAR_ANSWER);

    assert_eq!(ask()?, far);
    let id = daemon.rule_add(&["10.30.30.50"])?;
    assert_eq!(ask()?, "192.0.2.80\n");
    daemon.rule_remove(id)?;
    assert_eq!(ask()?, far);
    Ok(())
}

#[test]
fn rules_that_cannot_be_are_refused_and_change_nothing() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let before = daemon.rules()?.len();

    for arguments in [
        &[
            "rule",
            "add",
            "10.30.30.30",
            "--service",
            "echo",
            "--protocol",
            "udp",
        ][..],
        &["rule", "add", "10.30.30.30"],
        &["rule", "add", "10.30.30.30/24"],
        &["rule", "add", "nonsense"],
        &[
            "rule",
            "add",
            "10.30.30.77",
            "--protocol",
            "icmp",
            "--port",
            "53",
        ],
        &["rule", "remove", "4000000"],
    ] {
        let exit = daemon.try_ask(arguments)?;
        assert!(matches!(exit.code, Some(1 | 2)), "{arguments:?}: {exit:?}");
        assert!(
            exit.stderr.contains("interceptor: "),
            "{arguments:?}: {exit:?}"
        );
    }

    assert_eq!(daemon.rules()?.len(), before);
    assert_eq!(
        lab.dig("+short @10.30.30.30 www.example.test")?,
        "192.0.2.80\n"
    );
    Ok(())
}
