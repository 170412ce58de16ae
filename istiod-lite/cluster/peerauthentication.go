package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	securityv1 "istio.io/api/security/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// MTLSMode is what a PeerAuthentication asks of peers. The values are Istio's.
type MTLSMode string

// The modes.
const (
	// MTLSUnset leaves the choice to the next wider policy.
	MTLSUnset MTLSMode = "UNSET"
	// MTLSDisable means MTLSPermissive here, since a captured pod cannot refuse tunnels.
	MTLSDisable    MTLSMode = "DISABLE"
	MTLSPermissive MTLSMode = "PERMISSIVE"
	MTLSStrict     MTLSMode = "STRICT"
)

// PeerAuthentication says from whom workloads take connections.
type PeerAuthentication struct {
	Key
	Created time.Time
	// Selector picks workloads; without one the policy is its namespace's, or the mesh's in the root namespace.
	Selector Labels
	Mode     MTLSMode
	// Ports are modes for single ports of the workload, sorted by port.
	Ports  []PortMTLS
	Faults []string
}

// PortMTLS is the mode of one port.
type PortMTLS struct {
	Port uint16
	Mode MTLSMode
}

// ObjectKind is KindPeerAuthentication.
func (*PeerAuthentication) ObjectKind() Kind { return KindPeerAuthentication }

// ObjectKey is namespace and name.
func (p *PeerAuthentication) ObjectKey() Key { return p.Key }

// Equal reports whether both are the same in every field.
func (p *PeerAuthentication) Equal(o *PeerAuthentication) bool {
	return p.Key == o.Key && p.Created.Equal(o.Created) && p.Selector.Equal(o.Selector) && p.Mode == o.Mode &&
		slices.Equal(p.Ports, o.Ports) && slices.Equal(p.Faults, o.Faults)
}

// PeerAuthenticationOf reduces a PeerAuthentication. One that cannot be read asks for STRICT of whatever it selects as far as
// that can be read: a policy with a slip in it must not open what it was to close.
func PeerAuthenticationOf(in *unstructured.Unstructured) *PeerAuthentication {
	p := &PeerAuthentication{
		Key:     Key{in.GetNamespace(), in.GetName()},
		Created: in.GetCreationTimestamp().Time,
		Mode:    MTLSUnset,
	}
	selector, _, err := unstructured.NestedStringMap(in.Object, "spec", "selector", "matchLabels")
	if err != nil {
		p.fail(errors.New("spec.selector.matchLabels is not a map of strings"))
	}
	p.Selector = LabelsOf(selector)
	var spec securityv1.PeerAuthentication
	text, err := json.Marshal(in.Object["spec"])
	if err == nil && string(text) != "null" {
		err = protojson.Unmarshal(text, &spec) // what it does not know is an error, or a slip in a mode would be none
	}
	if err != nil {
		// protojson varies its spaces, so that nobody relies on its words; problems are compared all the same.
		p.fail(errors.New("spec: " + strings.ReplaceAll(err.Error(), "\u00a0", " ")))
		return p
	}
	if len(p.Faults) > 0 {
		return p
	}
	p.Mode = modeOf(spec.GetMtls())
	for port, mtls := range spec.GetPortLevelMtls() {
		if port < 1 || port > 65535 {
			p.Faults = append(p.Faults, fmt.Sprintf("spec.portLevelMtls: %d is not a port", port))
			continue
		}
		p.Ports = append(p.Ports, PortMTLS{uint16(port), modeOf(mtls)})
	}
	slices.SortFunc(p.Ports, func(a, b PortMTLS) int { return cmp.Compare(a.Port, b.Port) })
	slices.Sort(p.Faults)
	return p
}

func (p *PeerAuthentication) fail(err error) {
	p.Mode, p.Ports = MTLSStrict, nil
	p.Faults = append(p.Faults, err.Error()+"; treated as STRICT")
}

func modeOf(m *securityv1.PeerAuthentication_MutualTLS) MTLSMode {
	switch m.GetMode() {
	case securityv1.PeerAuthentication_MutualTLS_DISABLE:
		return MTLSDisable
	case securityv1.PeerAuthentication_MutualTLS_PERMISSIVE:
		return MTLSPermissive
	case securityv1.PeerAuthentication_MutualTLS_STRICT:
		return MTLSStrict
	case securityv1.PeerAuthentication_MutualTLS_UNSET:
		return MTLSUnset
	}
	return MTLSStrict // a mode that this release does not know
}
