// Package network is a node's life: it chooses the underlay, claims a lease,
// and then keeps the lease held, the peers mirrored and the kernel converged,
// until it is told to stop, which leaves everything as it is.
package network
