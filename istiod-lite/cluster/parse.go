package cluster

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// parseAddr reads an address into its shortest form; a fault is a sentence that names what was wrong.
func parseAddr(what, s string) (netip.Addr, string) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" || addr.IsUnspecified() {
		return netip.Addr{}, fmt.Sprintf("%s %q is not an IP address of one host", what, s)
	}
	return addr.Unmap(), ""
}

func parsePort(what string, n int32) (uint16, string) {
	if n < 1 || n > 65535 {
		return 0, fmt.Sprintf("%s: %d is not a port", what, n)
	}
	return uint16(n), ""
}

// isTCP reports whether a Kubernetes port is TCP, which is the default.
func isTCP(p corev1.Protocol) bool { return p == corev1.ProtocolTCP || p == "" }
