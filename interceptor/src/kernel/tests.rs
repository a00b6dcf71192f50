//! Filters of the clsact qdisc on real interfaces: whose they are, and what is left of them.

use nix::net::if_::if_nametoindex;

use super::*;
use crate::net::testing::{in_namespace, run};

#[test]
fn a_filter_says_which_reader_device_it_leads_to() {
    in_namespace(async || {
        let mut kernel = kernel(9);
        let bridge = tapped_bridge(&mut kernel);

        let filters = clsact::egress_programs(bridge).expect("asking for filters");

        let [filter] = filters.as_slice() else {
            panic!("one filter: {filters:?}");
        };
        assert_eq!((filter.name.as_str(), filter.handle), ("icept_plain_l2", 9));
    });
}

#[test]
fn only_filters_that_lead_to_nobodys_device_are_left_over() {
    in_namespace(async || {
        let (mut one, mut other) = (kernel(9), kernel(10));
        let bridge = tapped_bridge(&mut one);
        tap(&mut other, bridge);

        one.remove_leftovers("br0", bridge, |reader| reader == 10);

        let left = clsact::egress_programs(bridge).expect("asking for filters");
        let handles: Vec<u32> = left.iter().map(|filter| filter.handle).collect();
        assert_eq!(handles, [10]);
    });
}

#[test]
fn with_the_last_leftover_goes_the_qdisc() {
    in_namespace(async || {
        let mut killed = kernel(9);
        let bridge = tapped_bridge(&mut killed);
        killed.forget(bridge);

        kernel(10).remove_leftovers("br0", bridge, |_| false);

        assert!(!run("tc qdisc show dev br0").contains("clsact"));
    });
}

#[test]
fn an_interface_that_is_gone_is_forgotten_and_one_that_is_not_keeps_its_filter() {
    in_namespace(async || {
        let mut kernel = kernel(9);
        let bridge = tapped_bridge(&mut kernel);

        kernel.forget(bridge);

        assert!(!kernel.is_tapped(bridge));
        let filters = clsact::egress_programs(bridge).expect("asking for filters");
        assert_eq!(filters.len(), 1, "nothing was asked of the kernel");
        run("ip link del br0");
        let (_, filters) = clsact::hung(bridge, Hook::Egress).expect("asking");
        assert_eq!(filters, 0);
    });
}

#[test]
fn what_hangs_on_a_hook_is_told_with_whether_it_is_ours() {
    in_namespace(async || {
        let mut kernel = kernel(9);
        let bridge = tapped_bridge(&mut kernel);

        let egress = hung("br0", bridge, Hook::Egress).expect("asking for egress");
        let ingress = hung("br0", bridge, Hook::Ingress).expect("asking for ingress");

        let ours = Hung {
            what: "icept_plain_l2 (clsact)".to_owned(),
            is_ours: true,
            is_tcx: false,
        };
        assert_eq!((egress, ingress), (vec![ours], vec![]));
    });
}

#[test]
fn a_trial_says_what_would_be_taken_and_leaves_nothing() {
    in_namespace(async || {
        let mut kernel = Kernel::load(None, 16).expect("loading the programs, which takes root");

        let refused = kernel.verify().expect("programs that a kernel takes");
        let attached = kernel.try_attaching(AttachMode::Clsact);

        assert!(refused.is_none(), "{refused:?}");
        assert_eq!(attached.expect("attaching"), Attached::Clsact);
        assert!(!run("tc qdisc show dev lo").contains("clsact"));
    });
}

fn kernel(reader: u32) -> Kernel {
    let mut kernel = Kernel::load(None, 0).expect("loading the programs, which takes root");
    kernel
        .set_reader(reader, LinkLayer::Ip)
        .expect("naming the reader device");
    kernel
}

/// Makes the interface `br0` and taps it by clsact; gives its index.
fn tapped_bridge(kernel: &mut Kernel) -> u32 {
    run("ip link add br0 type bridge");
    let index = if_nametoindex("br0").expect("br0");
    tap(kernel, index);
    index
}

fn tap(kernel: &mut Kernel, index: u32) {
    kernel
        .tap("br0", index, LinkLayer::Ethernet, AttachMode::Clsact)
        .expect("tapping br0");
}
