package subnet

// Redialer is a Store that is reached over the network which is about to change
// under it.
type Redialer interface {
	// Redial gives up connections that are from another address than the host would
	// make them from now, on which nothing might be heard until a timeout, and lets
	// those that wait to be tried again be tried at once; where the host would connect
	// from where it did, it does nothing. It does not wait.
	Redial()
}
