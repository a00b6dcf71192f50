//! Split DNS: which names are asked of whom, and by which way.

use anyhow::Result;
use lab::{Capture, Daemon, FAR_V4, Knot, Lab, Namespace, PEER_V4, Routing, Scratch, interceptor};

const CORP: &str = "corp.example. 300 IN SOA ns.corp.example. admin.corp.example. 1 3600 600 86400 60\n\
    corp.example. 300 IN NS ns.corp.example.\n\
    ns.corp.example. 300 IN A 10.8.0.1\n\
    www.corp.example. 300 IN A 10.99.0.80\n\
    out.corp.example. 300 IN CNAME www.example.test.\n";

#[test]
fn names_of_a_domain_are_asked_of_its_resolver_and_no_others_are() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _corp = corp(&lab.net, "192.0.2.54")?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[[route]]\ndomains = [\"corp.example\", \"99.10.in-addr.arpa\"]\nupstreams = [\"udp://192.0.2.54\"]",
    )?;

    let inside = lab.dig("+short @10.30.30.30 WWW.Corp.Example")?;
    let outside = lab.dig("+short @10.30.30.30 www.example.test")?;
    let besides = lab.dig("@10.30.30.30 www.acorp.example")?;

    assert_eq!(inside, "10.99.0.80\n");
    assert_eq!(outside, "192.0.2.80\n");
    assert!(!besides.contains("10.99.0.80"), "{besides}");
    let status = daemon.status()?;
    assert_eq!(status["groups"][1]["domains"][0], "corp.example");
    let corp = &status["upstreams"][1];
    assert_eq!(corp["url"], "udp://192.0.2.54");
    assert_eq!(corp["sent"], 1, "{status:#}");
    Ok(())
}

#[test]
fn answers_of_a_route_are_remembered_and_given_by_the_kernel_like_others() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let mut corp = corp(&lab.net, "192.0.2.54")?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[[route]]\ndomains = [\"corp.example\"]\nupstreams = [\"udp://192.0.2.54\"]",
    )?;

    for _ in 0..6 {
        let answer = lab.dig("+short @10.30.30.30 www.corp.example")?;
        assert_eq!(answer, "10.99.0.80\n");
    }

    assert!(!corp.has_ended());
    let status = daemon.status()?;
    assert_eq!(status["upstreams"][1]["sent"], 1, "{status:#}");
    Ok(())
}

#[test]
fn what_an_alias_of_a_route_leads_to_is_not_routed_again() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _corp = corp(&lab.net, "192.0.2.54")?;
    let (_scratch, _daemon) = daemon(
        &lab,
        "[[route]]\ndomains = [\"corp.example\"]\nupstreams = [\"udp://192.0.2.54\"]",
    )?;

    let answer = lab.dig("+short @10.30.30.30 out.corp.example")?;

    assert_eq!(answer, "www.example.test.\n");
    Ok(())
}

#[test]
fn a_resolver_in_the_tunnel_is_asked_through_it_even_where_rules_take_all_of_port_53() -> Result<()>
{
    for routing in [Routing::Full, Routing::Split] {
        let lab = Lab::new(routing)?;
        let _corp = corp(&lab.peer, "10.8.0.1")?;
        let (_scratch, _daemon) = daemon(
            &lab,
            "[[rule]]\ndestination = \"any\"\nport = 53\n\
             [[route]]\ndomains = [\"corp.example\"]\nupstreams = [\"udp://10.8.0.1\"]\nvia = \"tunnel\"",
        )?;
        let far_side = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

        for transport in ["+notcp", "+tcp"] {
            let inside = lab.dig(&format!("+short {transport} @10.8.0.1 www.corp.example"))?;
            assert_eq!(inside, "10.99.0.80\n", "{routing:?} {transport}");
        }
        let outside = lab.dig("+short @10.8.0.1 www.example.test")?;

        assert_eq!(outside, "192.0.2.80\n", "answered by us, from outside");
        far_side.wait_for("a query through the tunnel", |packet| {
            packet.destination == PEER_V4 && packet.involves_port(53)
        })?;
    }
    Ok(())
}

#[test]
fn a_resolver_is_asked_through_the_device_that_is_named() -> Result<()> {
    let lab = Lab::new(Routing::Split)?;
    let _corp = corp(&lab.peer, "10.8.0.1")?;
    let interface = lab.tunnel.client_interface().to_owned();
    let (_scratch, daemon) = daemon(
        &lab,
        &format!(
            "[[group]]\nname = \"corp\"\nupstreams = [\"tcp://10.8.0.1\"]\n\
             [[route]]\ndomains = [\"corp.example\"]\ngroup = \"corp\"\nvia = \"{interface}\""
        ),
    )?;

    let answer = lab.dig("+short @10.30.30.30 www.corp.example")?;

    assert_eq!(answer, "10.99.0.80\n");
    let status = daemon.status()?;
    assert_eq!(status["groups"][1]["name"], "corp");
    assert_eq!(status["upstreams"][1]["via"], interface);
    Ok(())
}

#[test]
fn a_resolver_that_bypasses_the_tunnel_is_never_asked_through_it() -> Result<()> {
    let lab = Lab::new(Routing::Full)?;
    let (_scratch, _daemon) = daemon(
        &lab,
        &format!("[[route]]\ndomains = [\"example.test\"]\nupstreams = [\"udp://{FAR_V4}\"]"),
    )?;
    let far_side = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    lab.ping(PEER_V4)?;
    far_side.wait_for("the ping", |packet| packet.protocol == 1)?;
    assert_eq!(
        far_side.matching(|packet| packet.involves_port(53))?,
        Vec::new()
    );
    Ok(())
}

#[test]
fn routes_that_cannot_be_are_refused_in_one_line() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    for (file, message) in [
        (
            "[[route]]\ndomains = [\"a.example\"]\ngroup = \"corp\"",
            ":3:9: route.group: there is no group `corp`; groups here: default",
        ),
        (
            "[[route]]\ndomains = [\"a.example\"]\ngroup = \"default\"\n\
             [[route]]\ndomains = [\"A.Example\"]\nupstreams = [\"udp://192.0.2.1\"]",
            ":5:12: route.domains: `a.example` has a route already",
        ),
    ] {
        let scratch = Scratch::new()?;
        let path = scratch.write("interceptor.toml", file)?;
        let path = path.display().to_string();
        let exit = interceptor(&lab.client, &["check", "-c", &path])?;
        assert_eq!(exit.code, Some(2), "{exit:?}");
        assert!(exit.stderr.contains(message), "{}", exit.stderr);
        assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
    }
    Ok(())
}

fn corp(namespace: &Namespace, address: &str) -> Result<Knot> {
    let address = address.parse()?;
    Knot::start(
        namespace,
        &[address],
        "corp.example",
        CORP,
        "www.corp.example",
    )
}

/// The daemon on the tunnel with the resolver outside as its default, and what `file` says.
fn daemon(lab: &Lab, file: &str) -> Result<(Scratch, Daemon)> {
    let scratch = Scratch::new()?;
    let path = scratch.write("interceptor.toml", file)?;
    let daemon = lab.daemon(&["-c", &path.display().to_string()])?;
    Ok((scratch, daemon))
}
