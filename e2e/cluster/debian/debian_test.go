package debian

import (
	"slices"
	"testing"
)

func TestMissing(t *testing.T) {
	listing := "iptables installed\nipset config-files\nnftables not-installed\n"
	have := missing([]string{"iptables", "ipset", "nftables", "conntrack"}, listing)
	if want := []string{"ipset", "nftables", "conntrack"}; !slices.Equal(want, have) {
		t.Errorf("missing = %v, want %v", have, want)
	}
	if have := missing([]string{"iptables"}, listing); len(have) != 0 {
		t.Errorf("missing = %v, want none", have)
	}
}
