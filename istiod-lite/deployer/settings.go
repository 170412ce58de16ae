package deployer

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Settings are the same for all waypoints.
type Settings struct {
	// Image is a whole reference. Empty: nothing is deployed, and Gateways say so.
	Image      string
	PullPolicy corev1.PullPolicy
	// PullSecrets are names of Secrets in the namespaces of Gateways.
	PullSecrets []string
	// Build tells builds apart that have one tag; "" if tags are enough.
	Build string
	// Version is the release of the control plane, which is that of its waypoints.
	Version   string
	LogLevel  string
	Replicas  int32
	Resources corev1.ResourceRequirements
	// Grace is how long a pod that ends may take, in whole seconds.
	Grace time.Duration

	// Namespace is the control plane's.
	Namespace                string
	ClusterID, ClusterDomain string
	// RootCertConfigMap has the trust bundle, in every namespace, and CRLConfigMap the revocation lists, if there are any.
	RootCertConfigMap, CRLConfigMap string
}

// Defaults of what an environment leaves out.
const (
	defaultReplicas = 2
	defaultGrace    = 30 * time.Second
)

// ReadSettings reads what the installation sets for waypoints, by the names that the chart writes.
func ReadSettings(getenv func(string) string) (Settings, error) {
	s := Settings{
		Image: getenv("WAYPOINT_IMAGE"), PullPolicy: corev1.PullPolicy(getenv("WAYPOINT_IMAGE_PULL_POLICY")), Build: getenv("WAYPOINT_BUILD"),
		LogLevel: getenv("WAYPOINT_LOG_LEVEL"), Replicas: defaultReplicas, Grace: defaultGrace,
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
		}},
	}
	switch s.PullPolicy {
	case "":
		s.PullPolicy = corev1.PullIfNotPresent
	case corev1.PullIfNotPresent, corev1.PullAlways, corev1.PullNever:
	default:
		return s, fmt.Errorf("WAYPOINT_IMAGE_PULL_POLICY %q: must be Always, IfNotPresent or Never", s.PullPolicy)
	}
	for _, name := range strings.Split(getenv("WAYPOINT_IMAGE_PULL_SECRETS"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			s.PullSecrets = append(s.PullSecrets, name)
		}
	}
	if v := getenv("WAYPOINT_REPLICAS"); v != "" {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return s, fmt.Errorf("WAYPOINT_REPLICAS %q: must be a whole number from 0 to 65535", v)
		}
		s.Replicas = int32(n)
	}
	if v := getenv("WAYPOINT_RESOURCES"); v != "" {
		s.Resources = corev1.ResourceRequirements{}
		if err := json.Unmarshal([]byte(v), &s.Resources); err != nil {
			return s, fmt.Errorf("WAYPOINT_RESOURCES: %w", err)
		}
	}
	if v := getenv("WAYPOINT_GRACE_PERIOD"); v != "" {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return s, fmt.Errorf("WAYPOINT_GRACE_PERIOD %q: must be a whole number of seconds", v)
		}
		s.Grace = time.Duration(n) * time.Second
	}
	return s, nil
}
