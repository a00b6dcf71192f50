//! The host's network as the daemon sees it: links, routes and WireGuard marks, followed by netlink.
