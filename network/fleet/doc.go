// Package fleet measures many real ripstopds on one machine: hosts of a [lab.Lab]
// that all start at once against one etcd, and then some that join late.
//
// Who knows whom is told by the kernel of each host, not by its daemon: a node
// knows a peer as soon as its kernel announces the route to the peer's subnet.
package fleet
