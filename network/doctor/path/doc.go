// Package path finds out how packets get from this node to a peer and back, by the
// underlay and by the overlay, each way apart, and says which part is broken. Trying
// ([Examine]) is apart from judging ([Judge]), which is pure.
package path
