// Package probe asks peers whether they can be reached, and answers them: by small
// UDP datagrams to one port, on the underlay from public address to public address,
// and on the overlay from subnet to subnet.
//
// [Echo] answers, peers alone, and never with more bytes than it got. [Asker] asks:
// the daemon's [Prober] some peers in turn, `ripstop doctor` those that it is to
// look at.
package probe
