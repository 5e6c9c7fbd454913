package ripstopd

import (
	"fmt"
	"net"
	"strconv"

	"github.com/spf13/pflag"
)

// healthz are flannel's flags for what --listen says here.
type healthz struct {
	ip   string
	port int
}

func (h *healthz) register(flags *pflag.FlagSet) {
	flags.StringVar(&h.ip, "healthz-ip", "0.0.0.0", "`address` that --healthz-port is on")
	flags.IntVar(&h.port, "healthz-port", 0, "as --listen at that `port` of --healthz-ip; 0 for nowhere")
}

// listen gives the one address that all the flags mean.
func (h *healthz) listen(listen string) (string, error) {
	if h.port < 0 || h.port > 65535 {
		return "", fmt.Errorf("--healthz-port: %d is outside 0 to 65535", h.port)
	}
	if h.port != 0 {
		if listen != "" {
			return "", fmt.Errorf("--listen and --healthz-port: give one of them")
		}
		if net.ParseIP(h.ip) == nil {
			return "", fmt.Errorf("--healthz-ip: %q is no IP address", h.ip)
		}
		return net.JoinHostPort(h.ip, strconv.Itoa(h.port)), nil
	}
	if listen == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--listen: %w: give host and port, as in 127.0.0.1:8285", err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || host != "" && host != "localhost" && net.ParseIP(host) == nil {
		return "", fmt.Errorf("--listen: %q is no IP address with a port, as in 127.0.0.1:8285", listen)
	}
	return listen, nil
}
