//! Interfaces come, go and change their names; the daemon follows.

use anyhow::Result;
use lab::{Daemon, Lab, VIRTUAL_V4};

#[test]
fn an_interface_that_is_not_there_yet_is_waited_for() -> Result<()> {
    let mut lab = Lab::client_with_tunnel()?;
    let name = lab.tunnel.client_down()?;
    let daemon = Daemon::start(
        &lab.client,
        &["-i", &name, "--upstream", "udp://192.0.2.53"],
    )?;
    assert_eq!(daemon.interface_state(&name)?, "waiting");
    assert!(daemon.log().contains(&name), "it says so");

    lab.tunnel.client_up(&name)?;
    daemon.wait_attached(&name)?;

    assert_answered(&lab)
}

#[test]
fn an_interface_that_is_deleted_and_created_again_is_attached_again() -> Result<()> {
    deleted_and_created("tcx")
}

#[test]
fn an_interface_that_is_created_again_is_attached_through_clsact_too() -> Result<()> {
    deleted_and_created("clsact")
}

#[test]
fn an_interface_that_is_renamed_is_followed() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let name = lab.tunnel.client_interface();
    let daemon = lab.daemon(&[])?;

    rename(&lab, name, "renamed0")?;

    daemon.wait_status("an attached interface has the new name", |status| {
        status["interfaces"].as_array().is_some_and(|interfaces| {
            interfaces
                .iter()
                .any(|one| one["name"] == "renamed0" && one["state"] == "attached")
        })
    })?;
    assert_answered(&lab)
}

#[test]
fn an_interface_that_takes_the_awaited_name_is_attached() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let name = lab.tunnel.client_interface();
    let daemon = Daemon::start(
        &lab.client,
        &["-i", "awaited0", "--upstream", "udp://192.0.2.53"],
    )?;

    rename(&lab, name, "awaited0")?;

    daemon.wait_attached("awaited0")?;
    assert_answered(&lab)
}

#[test]
fn a_second_daemon_on_the_same_interface_is_refused_clearly() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let name = lab.tunnel.client_interface();
    let first = lab.daemon(&[])?;

    let second = lab::interceptor(&lab.client, &["run", "-i", name])?;

    assert_eq!(second.code, Some(1), "{second:?}");
    assert_eq!(second.stderr.trim_end().lines().count(), 1, "{second:?}");
    for part in ["interceptor: ", name, &first.pid().to_string(), "--share"] {
        assert!(second.stderr.contains(part), "{part}: {second:?}");
    }
    assert_answered(&lab)
}

#[test]
fn a_second_daemon_may_share_the_interface_when_told_so() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let mut first = lab.daemon(&[])?;
    let mut second = lab.daemon(&["--share", "--address", "10.30.30.40"])?;

    assert_answered(&lab)?;
    assert_eq!(
        lab.dig("+short @10.30.30.40 www.example.test")?,
        "192.0.2.80\n"
    );
    assert_eq!(second.stop()?, 0);
    assert_answered(&lab)?;
    assert_eq!(first.stop()?, 0);
    Ok(())
}

#[test]
fn a_daemon_that_starts_again_leaves_the_filter_of_the_one_it_shares_with_alone() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    let mut first = lab.daemon(&["--attach", "clsact"])?;
    let other = lab.daemon(&["--attach", "clsact", "--share", "--address", "10.30.30.40"])?;
    let asked_of_other = || lab.dig("+short @10.30.30.40 www.example.test");

    first.kill()?;
    first.start_again()?;
    first.wait_attached(interface)?;

    assert_answered(&lab)?;
    assert_eq!(asked_of_other()?, "192.0.2.80\n");
    assert!(other.matched("10.30.30.40")? > 0);
    let filters = lab
        .client
        .run(&format!("tc filter show dev {interface} egress"))?;
    assert_eq!(
        filters.matches("handle 0x").count(),
        2,
        "that of the daemon that was killed is gone: {filters}"
    );
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_control_socket_is_refused_clearly() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let first = lab.daemon(&[])?;
    let control = first.control().display().to_string();

    let second = lab::interceptor(&lab.client, &["run", "--control", &control])?;

    assert_eq!(second.code, Some(1), "{second:?}");
    for part in [control.as_str(), &first.pid().to_string()] {
        assert!(second.stderr.contains(part), "{part}: {second:?}");
    }
    assert!(first.status()?["version"].is_string());
    Ok(())
}

#[test]
fn the_automatic_choice_is_tcx_where_the_kernel_has_it() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;

    let status = daemon.status()?;

    assert_eq!(
        status["interfaces"][0]["attach"],
        lab::automatic_attachment()
    );
    assert_eq!(status["interfaces"][0]["mtu"], 1420);
    Ok(())
}

#[test]
fn tcx_where_the_kernel_lacks_it_is_refused_with_advice() -> Result<()> {
    if lab::automatic_attachment() == "tcx" {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    let name = lab.tunnel.client_interface();

    let refused = lab::interceptor(&lab.client, &["run", "-i", name, "--attach", "tcx"])?;

    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{refused:?}");
    assert!(refused.stderr.contains("--attach clsact"), "{refused:?}");
    Ok(())
}

fn deleted_and_created(attach: &str) -> Result<()> {
    if !lab::can_attach(attach) {
        return Ok(());
    }
    let mut lab = Lab::client_with_tunnel()?;
    let name = lab.tunnel.client_interface().to_owned();
    let daemon = lab.daemon(&["--attach", attach])?;

    for _ in 0..3 {
        assert_answered(&lab)?;
        lab.tunnel.client_down()?;
        daemon.wait_status("the daemon waits", |status| {
            status["interfaces"][0]["state"] == "waiting"
        })?;
        lab.tunnel.client_up(&name)?;
        daemon.wait_attached(&name)?;
    }

    lab.wait_for_tunnel()?;
    assert_answered(&lab)
}

/// Renames the tunnel's interface; down meanwhile, as kernels before 6.2 want it.
fn rename(lab: &Lab, old: &str, new: &str) -> Result<()> {
    for line in [
        format!("ip link set {old} down"),
        format!("ip link set {old} name {new}"),
        format!("ip link set {new} up"),
        format!("ip route add 10.30.30.0/24 dev {new}"),
    ] {
        lab.client.run(&line)?;
    }
    Ok(())
}

fn assert_answered(lab: &Lab) -> Result<()> {
    for transport in ["+notcp", "+tcp"] {
        let answer = lab.dig(&format!(
            "+short {transport} @{VIRTUAL_V4} www.example.test"
        ))?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    Ok(())
}
