// istiod whose waypoints may be an Envoy of the Envoy project, which lacks the extensions of Istio's own build.
//
// What is changed before istiod starts, and nothing else: filters that only Istio's Envoy has are marked optional, so
// that another one leaves them out; and filter-state objects of Istio's own types become plain strings. What cannot be
// changed here is switched off by the lab with PILOT_ENABLE_METADATA_EXCHANGE and AMBIENT_ENABLE_MULTI_NETWORK_WAYPOINT.
package main

import (
	"fmt"
	"os"
	"strings"

	common "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httpstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	netstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"istio.io/istio/pilot/cmd/pilot-discovery/app"
	"istio.io/istio/pilot/pkg/xds/filters"
	"istio.io/istio/pkg/log"
)

const plainString = "envoy.string"

func toStrings(values []*common.FilterStateValue) {
	for _, v := range values {
		named := v.GetFactoryKey()
		if named == "" {
			named = strings.TrimPrefix(v.GetObjectKey(), "io.")
		}
		if strings.HasPrefix(named, "istio.") {
			v.FactoryKey = plainString
		}
	}
}

// rewrite replaces the configuration inside packed, which has the type of config.
func rewrite(packed *anypb.Any, config proto.Message, values func() []*common.FilterStateValue) error {
	if !packed.MessageIs(config) {
		return nil
	}
	if err := packed.UnmarshalTo(config); err != nil {
		return err
	}
	toStrings(values())
	return packed.MarshalFrom(config)
}

func adapt() error {
	filters.WaypointDownstreamMetadataFilter.IsOptional = true
	filters.WaypointUpstreamMetadataFilter.IsOptional = true
	filters.SidecarInboundMetadataFilter.IsOptional = true
	filters.SidecarOutboundMetadataFilter.IsOptional = true
	filters.SidecarOutboundMetadataFilterSkipHeaders.IsOptional = true

	for _, packed := range []*anypb.Any{
		filters.ConnectAuthorityFilter.GetTypedConfig(),
		filters.ConnectAuthorityFilterPre1_29_2.GetTypedConfig(),
		filters.ConnectAuthorityNetworkFilter.GetTypedConfig(),
	} {
		var http httpstate.Config
		if err := rewrite(packed, &http, func() []*common.FilterStateValue { return http.OnRequestHeaders }); err != nil {
			return err
		}
		var network netstate.Config
		if err := rewrite(packed, &network, func() []*common.FilterStateValue { return network.OnNewConnection }); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := adapt(); err != nil {
		fmt.Fprintln(os.Stderr, "filters:", err)
		os.Exit(1)
	}
	log.EnableKlogWithCobra()
	if err := app.NewRootCommand().Execute(); err != nil {
		log.Error(err)
		os.Exit(1)
	}
}
