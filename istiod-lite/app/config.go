package app

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/istiod-lite/ca"
	"github.com/ambit-mesh/ambit/istiod-lite/deployer"
)

// Config is what the command line and the environment say.
type Config struct {
	// Namespace is where the control plane runs and keeps its objects: --namespace, else POD_NAMESPACE, else istio-system.
	Namespace string
	// PodName is this replica's name in elections: POD_NAME, else the host name.
	PodName string
	// Kubeconfig is a file to reach the API server with. Empty means the pod's own service account.
	Kubeconfig string
	// ClusterID names this cluster in workload keys.
	ClusterID string
	// ClusterDomain is the DNS domain of services.
	ClusterDomain string
	// GRPCAddr serves xDS and the CA by TLS.
	GRPCAddr string
	// MonitoringAddr serves /metrics, /healthz and /ready.
	MonitoringAddr string
	// DebugAddr serves /debug; a loopback address. Empty serves nothing.
	DebugAddr string
	// PlaintextAddr serves xDS without TLS and authentication; a loopback address. Empty serves nothing.
	PlaintextAddr string
	// TrustedNodeAccounts are the service accounts of node proxies, "namespace/name".
	TrustedNodeAccounts []string
	// RootCertConfigMap is the name of the config map that holds the trust bundle in every namespace. Another mesh's control
	// plane in the same cluster must have another.
	RootCertConfigMap string
	// CRLConfigMap is the name of the config map that holds a plugged-in CA's revocation lists in every namespace.
	CRLConfigMap string
	// RootDistribution is how long a new root is handed out before certificates are signed under it, RootRetirement how long the
	// old one is after that. Zero: the CA's defaults.
	RootDistribution, RootRetirement time.Duration
	// Waypoints are what the installation sets for what is deployed for Gateways: WAYPOINT_IMAGE and so on.
	Waypoints deployer.Settings
	// DrainDelay is how long, after a signal to stop, everything is still served while readiness already says no, so that
	// clients that reconnect reach another replica.
	DrainDelay time.Duration
	// LogLevel is the least severe level that is logged.
	LogLevel slog.Level
	// LogFormat is "json" or "text".
	LogFormat string

	// refreshKeys is how often keys of issuers are fetched again; 0 is the default. For tests.
	refreshKeys time.Duration
	// started, if not nil, is told the listeners once everything is served: a test lets the kernel pick ports.
	started func(*web, *grpcServers)
}

// errHelp says that the user asked for help or the version, which was printed.
var errHelp = errors.New("help was printed")

// parseConfig reads the command line. What the user has to see of it (usage, faults) goes to stderr.
func parseConfig(args []string, stderr io.Writer) (Config, error) {
	var c Config
	var accounts, level string
	fs := flag.NewFlagSet("istiod-lite", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&c.Namespace, "namespace", envOr("POD_NAMESPACE", api.DefaultNamespace), "namespace of the control plane")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file, to run outside the cluster")
	fs.StringVar(&c.ClusterID, "cluster-id", api.DefaultClusterID, "name of this cluster")
	fs.StringVar(&c.ClusterDomain, "cluster-domain", api.DefaultClusterDomain, "DNS domain of the cluster's services")
	fs.StringVar(&c.GRPCAddr, "grpc-addr", fmt.Sprintf(":%d", api.PortControlPlane), "address of xDS and the CA (TLS)")
	fs.StringVar(&c.MonitoringAddr, "monitoring-addr", fmt.Sprintf(":%d", api.PortControlPlaneMonitoring), "address of /metrics, /healthz and /ready")
	fs.StringVar(&c.DebugAddr, "debug-addr", fmt.Sprintf("127.0.0.1:%d", api.PortControlPlaneDebug), "loopback address of /debug; empty: none")
	fs.StringVar(&c.PlaintextAddr, "plaintext-addr", "", "loopback address of xDS without TLS and authentication; empty: none")
	fs.StringVar(&accounts, "trusted-node-accounts", api.DefaultNamespace+"/"+api.NodeProxy, "service accounts of node proxies: namespace/name,...")
	fs.StringVar(&c.RootCertConfigMap, "root-cert-configmap", api.RootCertConfigMap, "config map for the trust bundle, in every namespace")
	fs.StringVar(&c.CRLConfigMap, "crl-configmap", api.CRLConfigMap, "config map for the revocation lists of a plugged-in CA, in every namespace")
	fs.DurationVar(&c.RootDistribution, "root-distribution", ca.DefaultDistribution, "how long a new root is handed out before it signs")
	fs.DurationVar(&c.RootRetirement, "root-retirement", ca.DefaultRetirement, "how long the old root is handed out after that")
	fs.DurationVar(&c.DrainDelay, "drain-delay", 5*time.Second, "how long to serve on after a signal to stop, not ready any more")
	fs.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "json", "json or text")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return Config{}, errHelp
	} else if err != nil {
		return Config{}, err
	}
	if fs.NArg() > 0 {
		return Config{}, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	c.PodName = os.Getenv("POD_NAME")
	if c.PodName == "" {
		c.PodName, _ = os.Hostname() // without a name the election says so
	}
	for _, a := range strings.Split(accounts, ",") {
		if a = strings.TrimSpace(a); a != "" {
			c.TrustedNodeAccounts = append(c.TrustedNodeAccounts, a)
		}
	}
	if err := c.LogLevel.UnmarshalText([]byte(level)); err != nil {
		return Config{}, fmt.Errorf("--log-level: %w", err)
	}
	var err error
	if c.Waypoints, err = deployer.ReadSettings(os.Getenv); err != nil {
		return Config{}, err
	}
	c.Waypoints.Namespace, c.Waypoints.ClusterID, c.Waypoints.ClusterDomain = c.Namespace, c.ClusterID, c.ClusterDomain
	c.Waypoints.Version = build.Version()
	c.Waypoints.RootCertConfigMap, c.Waypoints.CRLConfigMap = c.RootCertConfigMap, c.CRLConfigMap
	return c, c.validate()
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// validate names the first setting that cannot work.
func (c Config) validate() error {
	if errs := validation.IsDNS1123Label(c.Namespace); len(errs) > 0 {
		return fmt.Errorf("--namespace %q: %s", c.Namespace, errs[0])
	}
	if errs := validation.IsDNS1123Subdomain(c.ClusterDomain); len(errs) > 0 {
		return fmt.Errorf("--cluster-domain %q: %s", c.ClusterDomain, errs[0])
	}
	if c.ClusterID == "" || strings.ContainsAny(c.ClusterID, "/ ") {
		return fmt.Errorf("--cluster-id %q: must not be empty nor have slashes or spaces", c.ClusterID)
	}
	for _, a := range c.TrustedNodeAccounts {
		if ns, name, ok := strings.Cut(a, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			return fmt.Errorf("--trusted-node-accounts: %q is not of the form namespace/name", a)
		}
	}
	if errs := validation.IsDNS1123Subdomain(c.RootCertConfigMap); len(errs) > 0 {
		return fmt.Errorf("--root-cert-configmap %q: %s", c.RootCertConfigMap, errs[0])
	}
	if errs := validation.IsDNS1123Subdomain(c.CRLConfigMap); len(errs) > 0 {
		return fmt.Errorf("--crl-configmap %q: %s", c.CRLConfigMap, errs[0])
	}
	if c.RootDistribution < 0 || c.RootRetirement < 0 {
		return fmt.Errorf("--root-distribution %s, --root-retirement %s: must not be negative", c.RootDistribution, c.RootRetirement)
	}
	if c.LogFormat != "json" && c.LogFormat != "text" {
		return fmt.Errorf("--log-format %q: must be json or text", c.LogFormat)
	}
	if err := loopbackOnly(c.DebugAddr); err != nil {
		return fmt.Errorf("--debug-addr: %w", err)
	}
	if err := loopbackOnly(c.PlaintextAddr); err != nil {
		return fmt.Errorf("--plaintext-addr: %w", err)
	}
	if c.DrainDelay < 0 {
		return fmt.Errorf("--drain-delay %s: must not be negative", c.DrainDelay)
	}
	return nil
}

// loopbackOnly refuses an address that others could reach: what is served there asks nobody who they are. A host name is
// refused too, since what it resolves to is not known here.
func loopbackOnly(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is not a loopback address such as 127.0.0.1:%d: what is served there asks for no credential", addr, api.PortControlPlaneDebug)
	}
	return nil
}

func (c Config) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
