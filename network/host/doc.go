// Package host sees to it that a node does its host no harm and gets from it what
// it needs: what stands in a network's way is found before anything is changed,
// and settings of the host's are changed only where pods could not talk otherwise.
//
// What is to be said of a host is pure ([Obstacles], and what a [Keeper] plans);
// the host is read through interfaces.
package host
