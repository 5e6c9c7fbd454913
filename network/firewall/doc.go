// Package firewall keeps the packet filter's part of a node, over netlink and
// without any program: what leaves the cluster is masqueraded, VXLAN from others
// than peers is kept out, the tunnel's own packets are not tracked, and who else
// drops pods' traffic is found and named.
//
// All that is Ripstop's own is in the nftables table "inet ripstop". What it is
// to hold is planned by [Plan], a pure function, and written in one transaction,
// only where the kernel holds something else. There is no chain at the forward
// hook: a verdict "accept" ends its own base chain only (nft_do_chain), so that
// a rule there would let nothing pass that another chain drops. Such a chain is
// looked for instead, see [Finding]; iptables' own is where an accept can help.
package firewall
