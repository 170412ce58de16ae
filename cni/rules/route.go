package rules

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/xtables"
)

// loopbackHas says whether lo carries addresses of the family, without which it takes no route of it.
func loopbackHas(f xtables.Family) bool {
	if f == xtables.IPv4 {
		return true
	}
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && bytes.Equal(bytes.TrimSpace(text), []byte("0"))
}

func netlinkFamily(f xtables.Family) int {
	if f == xtables.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func policyRule(f xtables.Family) *netlink.Rule {
	mask := uint32(api.ConnmarkMask)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = netlinkFamily(f), api.RoutePreference, api.RouteTable
	r.Mark, r.Mask = api.ConnmarkInbound, &mask
	return r
}

func localRoute(f xtables.Family) (*netlink.Route, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo: %w", err)
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	if f == xtables.IPv6 {
		all = netip.MustParsePrefix("::/0")
	}
	return &netlink.Route{
		Family: netlinkFamily(f), Table: api.RouteTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		LinkIndex: lo.Attrs().Index,
		Dst:       &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())},
	}, nil
}

// haveRoute says whether the route and the rule that leads to it are there.
func haveRoute(f xtables.Family) (route, rule bool, err error) {
	rules, err := netlink.RuleListFiltered(netlinkFamily(f), policyRule(f), netlink.RT_FILTER_MARK|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PRIORITY)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return false, false, fmt.Errorf("list policy rules: %w", err)
	}
	want, err := localRoute(f)
	if err != nil {
		return false, false, err
	}
	routes, err := netlink.RouteListFiltered(netlinkFamily(f), want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return false, false, fmt.Errorf("list routes of table %d: %w", api.RouteTable, err)
	}
	return len(routes) > 0, len(rules) > 0, nil
}

func addRoute(f FamilySet) error {
	route, rule, err := haveRoute(f.Family)
	if err != nil {
		return err
	}
	if !route && loopbackHas(f.Family) {
		r, err := localRoute(f.Family)
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add route to table %d: %w", api.RouteTable, err)
		}
	}
	if !rule {
		if err := netlink.RuleAdd(policyRule(f.Family)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add policy rule %d: %w", api.RoutePreference, err)
		}
	}
	return nil
}

func removeRoute(f xtables.Family) error {
	route, rule, err := haveRoute(f)
	if err != nil {
		return err
	}
	if rule {
		if err := netlink.RuleDel(policyRule(f)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove policy rule %d: %w", api.RoutePreference, err)
		}
	}
	if route {
		r, err := localRoute(f)
		if err != nil {
			return err
		}
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route of table %d: %w", api.RouteTable, err)
		}
	}
	return nil
}
