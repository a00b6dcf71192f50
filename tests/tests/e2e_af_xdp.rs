//! End to end once more, with the AF_XDP reader: `lab::reader()` goes by this binary's name.
//!
//! Left out are `listen`, which has ordinary sockets instead of a reader, `query`, which asks the daemon by its socket, and
//! `readers`, whose tests name the reader themselves. `queues` is here alone: a TUN device has one.

#[path = "e2e/answers.rs"]
mod answers;
#[path = "e2e/attaching.rs"]
mod attaching;
#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/bootstrap.rs"]
mod bootstrap;
#[path = "e2e/bypass.rs"]
mod bypass;
#[path = "e2e/cache.rs"]
mod cache;
#[path = "e2e/chaos/mod.rs"]
mod chaos;
#[path = "e2e/device.rs"]
mod device;
#[path = "e2e/doctor.rs"]
mod doctor;
#[path = "e2e/encrypted.rs"]
mod encrypted;
#[path = "e2e/forgery.rs"]
mod forgery;
#[path = "e2e/groups.rs"]
mod groups;
#[path = "e2e/icmp.rs"]
mod icmp;
#[path = "e2e/kernel_answers.rs"]
mod kernel_answers;
#[path = "e2e/lifecycle.rs"]
mod lifecycle;
#[path = "e2e/names.rs"]
mod names;
#[path = "e2e/queues.rs"]
mod queues;
#[path = "e2e/reload.rs"]
mod reload;
#[path = "e2e/routes.rs"]
mod routes;
#[path = "e2e/routing.rs"]
mod routing;
#[path = "e2e/rules.rs"]
mod rules;
#[path = "e2e/shared_cache.rs"]
mod shared_cache;
#[path = "e2e/tcp.rs"]
mod tcp;
#[path = "e2e/tunnel.rs"]
mod tunnel;
#[path = "e2e/upstreams.rs"]
mod upstreams;
#[path = "e2e/ways.rs"]
mod ways;

use std::collections::BTreeSet;

#[test]
fn every_test_of_the_tun_reader_is_one_of_this_reader_but_for_those_that_are_named_as_left_out() {
    let mut expected = modules(include_str!("e2e/main.rs"));
    for left_out in ["listen", "query", "readers"] {
        assert!(expected.remove(left_out), "{left_out}");
    }
    assert!(expected.insert("queues"));

    assert_eq!(modules(include_str!("e2e_af_xdp.rs")), expected);
}

/// Those that a file declares.
fn modules(source: &str) -> BTreeSet<&str> {
    let names = source.lines().filter_map(|line| line.strip_prefix("mod "));
    names.filter_map(|name| name.strip_suffix(';')).collect()
}
