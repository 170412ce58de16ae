package auth

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// Keys of node metadata in which a client says who it is.
const (
	metaName           = "NAME"
	metaNamespace      = "NAMESPACE"
	metaServiceAccount = "SERVICE_ACCOUNT"
	metaNode           = "NODE_NAME"
)

// MatchNode checks that what an xDS client says of itself agrees with who it is: its node ID
// (type~address~pod.namespace~domain) and its metadata. What it leaves out is not checked, nor is what the caller's
// credential does not tell.
func MatchNode(c Caller, node *corev3.Node) error {
	say := func(what, said, is string) error {
		if said == "" || is == "" || said == is {
			return nil
		}
		return fmt.Errorf("node says its %s is %q, but its credential is of %q", what, said, is)
	}
	meta := func(key string) string { return node.GetMetadata().GetFields()[key].GetStringValue() }
	for _, check := range []struct{ what, said, is string }{
		{"namespace", meta(metaNamespace), c.Namespace},
		{"service account", meta(metaServiceAccount), c.ServiceAccount},
		{"pod", meta(metaName), c.Pod},
		{"Kubernetes node", meta(metaNode), c.Node},
	} {
		if err := say(check.what, check.said, check.is); err != nil {
			return err
		}
	}
	if parts := strings.Split(node.GetId(), "~"); len(parts) == 4 {
		if i := strings.LastIndexByte(parts[2], '.'); i >= 0 {
			if err := say("namespace", parts[2][i+1:], c.Namespace); err != nil {
				return err
			}
			return say("pod", parts[2][:i], c.Pod)
		}
	}
	return nil
}
