package check

import (
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// Kinds of policies.
var (
	authorizationPolicies  = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	requestAuthentications = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"}
)

// mostPolicies is how many policies are named one by one.
const mostPolicies = 20

// policies names the AuthorizationPolicies that mean at layer 4 something else than they say: with HTTP attributes, with an
// action of layer 7, or malformed. A waypoint's are none of them.
func (c *checker) policies() {
	list, err := c.listPolicies(authorizationPolicies)
	if apierrors.IsNotFound(err) {
		c.ok("AuthorizationPolicies: the kind is not there")
		return
	}
	if err != nil {
		c.unseen(fmt.Errorf("list AuthorizationPolicies: %w", err))
		return
	}
	namespaces, err := c.cluster.Kubernetes.CoreV1().Namespaces().List(c.ctx, metav1.ListOptions{LabelSelector: api.LabelDataplaneMode + "=" + api.DataplaneModeAmbient})
	if err != nil {
		c.unseen(fmt.Errorf("list namespaces: %w", err))
		return
	}
	enrolled := map[string]bool{}
	for _, ns := range namespaces.Items {
		enrolled[ns.Name] = true
	}
	root := survey.Settings(c.ctx, c.cluster.Kubernetes, c.mesh).RootNamespace
	looked, other := 0, 0
	for i := range list {
		u := &list[i]
		if c.only != "" && u.GetNamespace() != c.only && u.GetNamespace() != root {
			continue
		}
		looked++
		p := authz.Read(u.GetNamespace(), u.GetName(), u.GetAnnotations(), u.Object["spec"])
		condition := p.Condition()
		if p.Attached {
			verdict := p.AtWaypoints()
			condition.Accepted, condition.Message = verdict.Whole, verdict.Message
		}
		if condition.Accepted {
			continue
		}
		if other++; other > mostPolicies {
			continue
		}
		where := "as soon as namespace " + p.Namespace + " is enrolled"
		switch {
		case p.Attached:
			where = "at waypoints"
		case p.Namespace == root:
			where = "for all pods of the mesh"
		case enrolled[p.Namespace]:
			where = "in namespace " + p.Namespace
		}
		c.warn(fmt.Sprintf("kubectl -n %s edit authorizationpolicy %s", p.Namespace, p.Name), "AuthorizationPolicy %s/%s does not mean what it says %s: %s", p.Namespace, p.Name, where, condition.Message)
	}
	switch {
	case other > mostPolicies:
		c.warn("ambit check -n NAMESPACE looks at one namespace", "AuthorizationPolicies that do not mean what they say: %d more", other-mostPolicies)
	case other == 0:
		c.ok("AuthorizationPolicies: %d, none of which means anything else than it says", looked)
	}
}

// authentications names the RequestAuthentications that do not do what they say: with faults, without targetRefs, or without the keys of
// an issuer, which the control plane says in a condition.
func (c *checker) authentications() {
	list, err := c.listPolicies(requestAuthentications)
	if apierrors.IsNotFound(err) {
		c.ok("RequestAuthentications: the kind is not there")
		return
	}
	if err != nil {
		c.unseen(fmt.Errorf("list RequestAuthentications: %w", err))
		return
	}
	root := survey.Settings(c.ctx, c.cluster.Kubernetes, c.mesh).RootNamespace
	looked, other := 0, 0
	for i := range list {
		u := &list[i]
		if c.only != "" && u.GetNamespace() != c.only && u.GetNamespace() != root {
			continue
		}
		looked++
		p := authn.Read(u.GetNamespace(), u.GetName(), u.Object["spec"])
		what := strings.Join(p.Problems, "; ")
		switch {
		case !p.Attached:
			what = "it has no targetRefs, and only waypoints look at tokens: nothing authenticates by it"
		case what == "":
			what = noKeys(u)
		}
		if what == "" {
			continue
		}
		if other++; other <= mostPolicies {
			c.warn(fmt.Sprintf("kubectl -n %s edit requestauthentication %s", p.Namespace, p.Name), "RequestAuthentication %s/%s does not do what it says: %s", p.Namespace, p.Name, what)
		}
	}
	switch {
	case other > mostPolicies:
		c.warn("ambit check -n NAMESPACE looks at one namespace", "RequestAuthentications that do not do what they say: %d more", other-mostPolicies)
	case other == 0:
		c.ok("RequestAuthentications: %d, each of which does what it says", looked)
	}
}

// noKeys is what the control plane says of keys that it cannot have, "" if it says nothing of that.
func noKeys(u *unstructured.Unstructured) string {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, v := range list {
		if m, ok := v.(map[string]any); ok && m["type"] == authz.WaypointConditionType && m["reason"] == authn.ReasonNoKeys {
			text, _ := m["message"].(string)
			return text
		}
	}
	return ""
}

func (c *checker) listPolicies(kind schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	var out []unstructured.Unstructured
	options := metav1.ListOptions{Limit: 500}
	for {
		list, err := c.cluster.Dynamic.Resource(kind).List(c.ctx, options)
		if err != nil {
			return nil, err
		}
		out = append(out, list.Items...)
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return out, nil
		}
	}
}
