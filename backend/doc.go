// Package backend holds forwarding state as comparable values: what a kernel
// has or should have ([State]), what turns the one into the other ([Diff],
// [Op]), and the [Kernel] to which that is done ([Execute]).
//
// All but Execute is pure. The planners below this package say which entries a
// lease owes; package kernel talks to Linux.
package backend
